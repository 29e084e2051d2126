package replica

import "time"

// bootTime: there is none in the simulation, which gives each node a clock of its own.
func bootTime() time.Duration { panic("Config.Clock is not set") }
