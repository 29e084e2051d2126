package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newConfigCommand(a *app) *cobra.Command {
	root := parent("config", "Show the effective configuration of a daemon",
		"Shows which settings a daemon would run with.\n\n"+precedenceText,
		"  lockstep config show controller --config /etc/lockstep/controller.yaml")
	show := parent("show", "Print the effective settings with their origins",
		"Prints every setting with its value and where that came from, and checks them all.\n\n"+precedenceText,
		"  lockstep config show node --config /etc/lockstep/node.yaml --json")
	show.AddCommand(newConfigShowController(a), newConfigShowNode(a))
	root.AddCommand(show)
	return root
}

const precedenceText = `A flag goes before the variable LOCKSTEP_<KEY>, that before the file of --config,
that before the default. The key etcd_dir of the file is the flag --etcd-dir and
the variable LOCKSTEP_ETCD_DIR. A key that is not known is an error.`

func newConfigShowController(a *app) *cobra.Command {
	cfg := defaultControllerConfig()
	cmd := &cobra.Command{
		Use:     "controller",
		Short:   "Print the settings of `lockstep controller`",
		Long:    "Prints what `lockstep controller` would run with, given the same flags, and checks it.\n\n" + precedenceText,
		Example: "  lockstep config show controller --config etc/controller.yaml",
		Args:    noArgs,
	}
	s := newSettings(&cfg, controllerHelp, cmd.Flags())
	a.jsonFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error { return a.showSettings(s, func() error { return cfg.validate() }) }
	return cmd
}

func newConfigShowNode(a *app) *cobra.Command {
	cfg := defaultNodeConfig()
	cmd := &cobra.Command{
		Use:     "node",
		Short:   "Print the settings of `lockstep node`",
		Long:    "Prints what `lockstep node` would run with, given the same flags, and checks it.\n\n" + precedenceText,
		Example: "  lockstep config show node --config etc/node.yaml",
		Args:    noArgs,
	}
	s := newSettings(&cfg, nodeHelp, cmd.Flags())
	a.jsonFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error { return a.showSettings(s, func() error { return cfg.validate() }) }
	return cmd
}

// showSettings prints first and judges afterwards: the origin of a wrong value is what one is
// looking for.
func (a *app) showSettings(s *settings, validate func() error) error {
	if err := s.load(); err != nil {
		return usage(err)
	}
	list := s.list()
	var printed error
	if a.json {
		printed = a.printJSON(list)
	} else {
		rows := make([][]string, len(list))
		for i, e := range list {
			value := fmt.Sprint(e.Value)
			if items, ok := e.Value.([]string); ok {
				value = strings.Join(items, ", ")
			}
			rows[i] = []string{e.Key, orDash(value), e.Origin}
		}
		printed = a.printTable([]string{"KEY", "VALUE", "ORIGIN"}, rows)
	}
	return errors.Join(printed, usage(validate()))
}
