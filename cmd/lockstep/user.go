package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

func newUserCommand(a *app) *cobra.Command {
	cmd := parent("user", "Create, list and delete users, set passwords",
		"Users log in to the API. One can work in the projects in which it has a role: see\n`lockstep role`. Managing users needs the role admin on their domain, or on the\ndomain default.\n\nUSER is an id or a name that only one user has.",
		"  lockstep user create --name bob --password-file bob.secret\n  lockstep role grant member --user bob --project team")
	a.cloudFlags(cmd)
	cmd.AddCommand(a.userList(), a.userCreate(), a.userDelete(), a.userSetPassword())
	return cmd
}

func findUser(ctx context.Context, c *client.Client, ref string) (client.User, error) {
	get := func(ctx context.Context, id string) (client.User, error) {
		u, err := c.User(ctx, id)
		if client.IsForbidden(err) { // who manages nobody may look at no id but the own, and still has a name
			err = &client.Error{Status: http.StatusNotFound, Message: err.Error()}
		}
		return u, err
	}
	return find(ctx, "user", ref, get, c.Users, func(u client.User) (string, string) { return u.ID, u.Name })
}

func findProject(ctx context.Context, c *client.Client, ref string) (client.Project, error) {
	return find(ctx, "project", ref, c.Project, c.Projects, func(p client.Project) (string, string) { return p.ID, p.Name })
}

func findDomain(ctx context.Context, c *client.Client, ref string) (client.Domain, error) {
	return find(ctx, "domain", ref, c.Domain, c.Domains, func(d client.Domain) (string, string) { return d.ID, d.Name })
}

// domainID resolves a domain; "" stays "", which is the caller's own.
func domainID(ctx context.Context, c *client.Client, ref string) (string, error) {
	if ref == "" {
		return "", nil
	}
	d, err := findDomain(ctx, c, ref)
	return d.ID, err
}

// password reads the first line of a file, or of standard input for "-".
func (a *app) password(path string) (string, error) {
	if path != "-" {
		secret, err := readSecret(path)
		return secret, usage(err)
	}
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read a password from standard input: %w", err)
	}
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", usage(errors.New("standard input holds no password"))
	}
	return line, nil
}

func (a *app) userList() *cobra.Command {
	var f client.Filter
	cmd := &cobra.Command{
		Use: "list", Short: "List users",
		Long:    "Lists the users of the domains that one manages, and oneself.",
		Example: "  lockstep user list --json", Args: noArgs,
	}
	cmd.Flags().StringVar(&f.Name, "name", "", "only those of this name")
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		users, err := c.Users(ctx, f)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(users)
		}
		rows := make([][]string, len(users))
		for i, u := range users {
			rows[i] = []string{u.ID, u.Name, u.DomainID, strconv.FormatBool(u.Enabled), orDash(u.Email)}
		}
		return a.printTable([]string{"ID", "NAME", "DOMAIN", "ENABLED", "EMAIL"}, rows)
	})
}

func (a *app) userCreate() *cobra.Command {
	var u client.UserCreate
	var file, domain string
	cmd := &cobra.Command{
		Use: "create", Short: "Create a user",
		Long: `Creates a user. It has no role yet, so it can work in no project; see
"lockstep role grant". Without a password it cannot log in until it gets one.`,
		Example: "  lockstep user create --name bob --password-file bob.secret", Args: noArgs,
	}
	cmd.Flags().StringVar(&u.Name, "name", "", "name, at most 255 bytes, the only one in its domain")
	cmd.Flags().StringVar(&file, "password-file", "", "file whose first line is the password; - for standard input")
	cmd.Flags().StringVar(&domain, "domain", "", "domain, by id or name (default: one's own)")
	cmd.Flags().StringVar(&u.Email, "email", "", "address for people to look at; nothing is sent to it")
	cmd.Flags().StringVar(&u.Description, "description", "", "description, at most 255 bytes")
	a.jsonFlag(cmd)
	run := a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		var err error
		if cmd.Flags().Changed("password-file") {
			if u.Password, err = a.password(file); err != nil {
				return err
			}
		}
		if u.DomainID, err = domainID(ctx, c, domain); err != nil {
			return err
		}
		made, err := c.CreateUser(ctx, u)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(made)
		}
		return a.printFields([][2]string{
			{"id", made.ID},
			{"name", made.Name},
			{"domain", made.DomainID},
			{"enabled", strconv.FormatBool(made.Enabled)},
			{"email", orDash(made.Email)},
			{"description", orDash(made.Description)},
		})
	})
	return needFlags(run, "name")
}

func (a *app) userDelete() *cobra.Command {
	var yes confirmer
	cmd := &cobra.Command{
		Use: "delete USER...", Short: "Delete users",
		Long:    "Deletes users with their roles and application credentials. Their tokens end at\nonce. What they made stays.",
		Example: "  lockstep user delete bob --yes", Args: atLeastArgs("USER"),
	}
	yes.flag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		for _, ref := range args {
			u, err := findUser(ctx, c, ref)
			if err != nil {
				return err
			}
			if err := a.confirm(yes, fmt.Sprintf("User %s (%s), its roles and its application credentials will be deleted.", u.ID, printable(u.Name))); err != nil {
				return err
			}
			if err := c.DeleteUser(ctx, u.ID); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *app) userSetPassword() *cobra.Command {
	var file, original string
	cmd := &cobra.Command{
		Use: "set-password USER", Short: "Set a user's password",
		Long: `Sets another password. All tokens of the user end; application credentials stay.

Who manages the user needs no more. One's own password is changed with the old one
in --original-password-file, which needs no role.`,
		Example: "  lockstep user set-password bob --password-file bob.secret", Args: exactArgs("USER"),
	}
	cmd.Flags().StringVar(&file, "password-file", "", "file whose first line is the new password; - for standard input")
	cmd.Flags().StringVar(&original, "original-password-file", "", "file whose first line is the old password")
	run := a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		if file == "-" && original == "-" {
			return usage(errors.New("only one of the passwords can come from standard input"))
		}
		password, err := a.password(file)
		if err != nil {
			return err
		}
		u, err := findUser(ctx, c, args[0])
		if err != nil {
			return err
		}
		if original == "" {
			return c.SetPassword(ctx, u.ID, password)
		}
		old, err := a.password(original)
		if err != nil {
			return err
		}
		return c.ChangePassword(ctx, u.ID, old, password)
	})
	return needFlags(run, "password-file")
}

func newProjectCommand(a *app) *cobra.Command {
	cmd := parent("project", "Create, list and delete projects",
		"A project owns volumes, pairs and groups; the token of a request says which project\nis meant. Managing projects needs the role admin on their domain, or on the domain\ndefault.\n\nPROJECT is an id or a name that only one project has.",
		"  lockstep project create --name team\n  lockstep project list")
	a.cloudFlags(cmd)
	cmd.AddCommand(a.projectList(), a.projectCreate(), a.projectDelete())
	return cmd
}

func (a *app) projectList() *cobra.Command {
	var f client.Filter
	cmd := &cobra.Command{
		Use: "list", Short: "List projects",
		Long:    "Lists the projects in which one has a role, and those of the domains that one\nmanages.",
		Example: "  lockstep project list --json", Args: noArgs,
	}
	cmd.Flags().StringVar(&f.Name, "name", "", "only those of this name")
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		projects, err := c.Projects(ctx, f)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(projects)
		}
		rows := make([][]string, len(projects))
		for i, p := range projects {
			rows[i] = []string{p.ID, p.Name, p.DomainID, strconv.FormatBool(p.Enabled), orDash(p.Description)}
		}
		return a.printTable([]string{"ID", "NAME", "DOMAIN", "ENABLED", "DESCRIPTION"}, rows)
	})
}

func (a *app) projectCreate() *cobra.Command {
	var p client.ProjectCreate
	var domain string
	cmd := &cobra.Command{
		Use: "create", Short: "Create a project",
		Long:    "Creates an empty project. Nobody has a role in it yet, not even who made it: see\n`lockstep role grant`.",
		Example: "  lockstep project create --name team --description \"the shop\"", Args: noArgs,
	}
	cmd.Flags().StringVar(&p.Name, "name", "", "name, at most 255 bytes, the only one in its domain")
	cmd.Flags().StringVar(&domain, "domain", "", "domain, by id or name (default: one's own)")
	cmd.Flags().StringVar(&p.Description, "description", "", "description, at most 255 bytes")
	a.jsonFlag(cmd)
	run := a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		var err error
		if p.DomainID, err = domainID(ctx, c, domain); err != nil {
			return err
		}
		made, err := c.CreateProject(ctx, p)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(made)
		}
		return a.printFields([][2]string{
			{"id", made.ID},
			{"name", made.Name},
			{"domain", made.DomainID},
			{"enabled", strconv.FormatBool(made.Enabled)},
			{"description", orDash(made.Description)},
		})
	})
	return needFlags(run, "name")
}

func (a *app) projectDelete() *cobra.Command {
	var yes confirmer
	cmd := &cobra.Command{
		Use: "delete PROJECT...", Short: "Delete projects",
		Long:    "Deletes projects that own no volume, pair and group, with the roles and application\ncredentials in them. The project of the first start stays.",
		Example: "  lockstep project delete team --yes", Args: atLeastArgs("PROJECT"),
	}
	yes.flag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		for _, ref := range args {
			p, err := findProject(ctx, c, ref)
			if err != nil {
				return err
			}
			if err := a.confirm(yes, fmt.Sprintf("Project %s (%s), and all roles and application credentials in it, will be deleted.", p.ID, printable(p.Name))); err != nil {
				return err
			}
			if err := c.DeleteProject(ctx, p.ID); err != nil {
				return err
			}
		}
		return nil
	})
}
