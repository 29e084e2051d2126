package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/client"
)

// dialTimeout bounds the log-in.
const dialTimeout = 20 * time.Second

// cloudFlags gives cmd and all commands below it the flags that choose the credentials.
func (a *app) cloudFlags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&a.cloud, "os-cloud", "", "cloud of clouds.yaml to use (default $OS_CLOUD; without it the OS_ variables are used)")
	f.StringVar(&a.cloudsFile, "clouds", "", "path of clouds.yaml (default $OS_CLIENT_CONFIG_FILE and the usual places)")
	f.StringVar(&a.region, "os-region-name", "", "region (default: the cloud's, or $OS_REGION_NAME)")
}

// dial logs in.
func (a *app) dial(ctx context.Context) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return client.Dial(ctx, client.Options{
		Cloud: a.cloud, CloudsFile: a.cloudsFile, Region: a.region, UserAgent: "lockstep/" + version,
	})
}

// apiCommand makes a command that logs in before it runs.
func (a *app) apiCommand(cmd *cobra.Command, do func(ctx context.Context, c *client.Client, args []string) error) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.dial(cmd.Context())
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, args)
	}
	return cmd
}

// find resolves an id or an unambiguous name.
func find[T any](ctx context.Context, kind, ref string, get func(context.Context, string) (T, error),
	list func(context.Context, client.Filter) ([]T, error), ident func(T) (id, name string),
) (T, error) {
	thing, err := get(ctx, ref)
	if err == nil || !client.IsNotFound(err) {
		return thing, err
	}
	all, listErr := list(ctx, client.Filter{Name: ref})
	if listErr != nil {
		return thing, listErr
	}
	var found []T
	var ids []string
	for _, t := range all {
		if id, name := ident(t); name == ref {
			found, ids = append(found, t), append(ids, id)
		}
	}
	switch len(found) {
	case 0:
		return thing, fmt.Errorf("%s %q: %w", kind, ref, lockstep.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return thing, usage(fmt.Errorf("%d %ss are called %q; use an id: %s", len(found), kind, ref, strings.Join(ids, ", ")))
}

func findVolume(ctx context.Context, c *client.Client, ref string) (client.Volume, error) {
	return find(ctx, "volume", ref, c.Volume, c.Volumes, func(v client.Volume) (string, string) { return v.ID, deref(v.Name) })
}

func findPair(ctx context.Context, c *client.Client, ref string) (client.Pair, error) {
	return find(ctx, "pair", ref, c.Pair, c.Pairs, func(p client.Pair) (string, string) { return p.ID, deref(p.Name) })
}

func findGroup(ctx context.Context, c *client.Client, ref string) (client.Group, error) {
	return find(ctx, "group", ref, c.Group, c.Groups, func(g client.Group) (string, string) { return g.ID, deref(g.Name) })
}

func pairIDs(ctx context.Context, c *client.Client, refs []string) ([]string, error) {
	ids := make([]string, 0, len(refs))
	for _, ref := range refs {
		p, err := findPair(ctx, c, ref)
		if err != nil {
			return nil, err
		}
		ids = append(ids, p.ID)
	}
	return ids, nil
}

// confirmer is the --yes flag of a dangerous verb.
type confirmer struct{ yes bool }

func (f *confirmer) flag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask; needed where no terminal is attached")
}

// confirm prints what will happen and asks. Without a terminal only --yes is a yes.
func (a *app) confirm(f confirmer, what ...string) error {
	for _, line := range what {
		a.say("%s", line)
	}
	if f.yes {
		return nil
	}
	if !isTerminal(a.in) {
		return fmt.Errorf("%w: no terminal to ask at; add --yes", errRefused)
	}
	fmt.Fprint(a.err, "Go on? Type yes: ")
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && answer == "" {
		return fmt.Errorf("%w: read the answer: %w", errRefused, err)
	}
	if strings.TrimSpace(answer) != "yes" {
		return errRefused
	}
	return nil
}

// optional returns a pointer to the flag's value if the flag was given.
func optional(cmd *cobra.Command, flag, value string) *string {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	return &value
}
