package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/client"
)

func newRoleCommand(a *app) *cobra.Command {
	cmd := parent("role", "Give users roles on projects and domains",
		`The roles are fixed, and each implies those after it:

  admin     also makes the statements about nodes and recovers the store
  operator  also decides which side of a group serves: failover, switchover, reprotect
  member    makes, changes and deletes what belongs to the project
  reader    looks, and changes nothing of the project

Any of them admits a user to a project. admin on a domain manages the users and
projects of that domain, on the domain default those of all; the others mean nothing
there. Where the controllers' failover_role is member, members do what operators do.`,
		"  lockstep role grant member --user bob --project team\n  lockstep role grant operator --user oncall --project team\n  lockstep role list --user bob")
	a.cloudFlags(cmd)
	cmd.AddCommand(a.roleList(), a.roleGrant(), a.roleRevoke())
	return cmd
}

// target is where a role holds: the flags --user, --project and --domain.
type target struct{ user, project, domain string }

func (g *target) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&g.user, "user", "", "user, by id or name")
	cmd.Flags().StringVar(&g.project, "project", "", "project, by id or name")
	cmd.Flags().StringVar(&g.domain, "domain", "", "domain, by id or name")
}

// resolve gives the ids of what was named.
func (g target) resolve(ctx context.Context, c *client.Client) (grant client.Grant, err error) {
	if g.user != "" {
		u, err := findUser(ctx, c, g.user)
		if err != nil {
			return grant, err
		}
		grant.UserID = u.ID
	}
	if g.project != "" {
		p, err := findProject(ctx, c, g.project)
		if err != nil {
			return grant, err
		}
		grant.ProjectID = p.ID
	}
	grant.DomainID, err = domainID(ctx, c, g.domain)
	return grant, err
}

func (a *app) roleList() *cobra.Command {
	var g target
	cmd := &cobra.Command{
		Use: "list", Short: "List who has which role where",
		Long:    "Lists one's own roles, and those on the projects and domains that one manages.",
		Example: "  lockstep role list --project team", Args: noArgs,
	}
	g.flags(cmd)
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		grant, err := g.resolve(ctx, c)
		if err != nil {
			return err
		}
		all, err := c.Assignments(ctx, grant)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(all)
		}
		rows := make([][]string, len(all))
		for i, x := range all {
			rows[i] = []string{x.Role.Name, x.User.Name, orDash(x.Project.Name), orDash(x.Domain.Name)}
		}
		return a.printTable([]string{"ROLE", "USER", "PROJECT", "DOMAIN"}, rows)
	})
}

// roleCommand makes a command that gives or takes one role.
func (a *app) roleCommand(cmd *cobra.Command, do func(context.Context, *client.Client, client.Grant, string) error) *cobra.Command {
	var g target
	g.flags(cmd)
	cmd.Args = exactArgs("ROLE")
	run := a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		role, err := findRole(ctx, c, args[0])
		if err != nil {
			return err
		}
		grant, err := g.resolve(ctx, c)
		if err != nil {
			return err
		}
		grant.RoleID = role.ID
		return do(ctx, c, grant, fmt.Sprintf("role %s of user %s on %s%s", role.Name, g.user, g.project, g.domain))
	})
	run = needFlags(run, "user")
	user := run.PreRunE
	run.PreRunE = func(cmd *cobra.Command, args []string) error {
		if (g.project == "") == (g.domain == "") {
			return usage(errors.New("exactly one of --project and --domain must be given"))
		}
		return user(cmd, args)
	}
	return run
}

func findRole(ctx context.Context, c *client.Client, ref string) (client.Role, error) {
	all, err := c.Roles(ctx)
	if err != nil {
		return client.Role{}, err
	}
	names := make([]string, len(all))
	for i, r := range all {
		if r.ID == ref || r.Name == ref {
			return r, nil
		}
		names[i] = r.Name
	}
	return client.Role{}, fmt.Errorf("role %q: %w; roles are %s", ref, lockstep.ErrNotFound, strings.Join(names, ", "))
}

func (a *app) roleGrant() *cobra.Command {
	cmd := &cobra.Command{
		Use: "grant ROLE", Short: "Give a user a role on a project or domain",
		Long:    "Gives a user a role on a project or on a domain: admin, operator, member or reader.\nOne that it has already is no error. What a role implies need not be given.",
		Example: "  lockstep role grant member --user bob --project team\n  lockstep role grant reader --user dashboard --project team",
	}
	return a.roleCommand(cmd, func(ctx context.Context, c *client.Client, g client.Grant, _ string) error {
		return c.GrantRole(ctx, g)
	})
}

func (a *app) roleRevoke() *cobra.Command {
	var yes confirmer
	cmd := &cobra.Command{
		Use: "revoke ROLE", Short: "Take a role from a user",
		Long:    "Takes a role away. The user's application credentials there that hold a role which\nthe user no longer has are deleted, and do not come back when it is given again. A\nrole that another one implies stays with that one.",
		Example: "  lockstep role revoke member --user bob --project team --yes",
	}
	yes.flag(cmd)
	return a.roleCommand(cmd, func(ctx context.Context, c *client.Client, g client.Grant, what string) error {
		if err := a.confirm(yes, "The "+printable(what)+" will be taken away, and application credentials there that hold what is lost deleted."); err != nil {
			return err
		}
		return c.RevokeRole(ctx, g)
	})
}
