// Command lockstep is the one binary of the project: the controller, the storage node, a whole
// deployment on one machine, and the command line to the API.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
