package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/internal/ca"
)

const (
	day          = 24 * time.Hour
	caDays       = 3650
	issueDays    = 365
	caDirText    = "directory of the CA"
	caDirDefault = "ca"
)

func newCACommand(a *app) *cobra.Command {
	cmd := parent("ca", "Make certificates for the parts of a small site",
		`Keeps a certificate authority in a directory, and issues certificates for the links
between nodes, for etcd and its clients, and for the API. Sites that have an
authority of their own use that instead.

The directory's key can make anybody a node: keep it on one machine that is none
of the deployment's, with a backup.`,
		`  lockstep ca init --dir /root/ca
  lockstep ca issue node az1-node-1 --dir /root/ca
  lockstep ca show --dir /root/ca`)
	cmd.AddCommand(newCAInit(a), newCAIssue(a), newCAShow(a))
	return cmd
}

func caDir(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", caDirDefault, caDirText)
}

func daysFlag(cmd *cobra.Command, days *int, def int, text string) {
	cmd.Flags().IntVar(days, "days", def, text)
}

// lifeOf checks before it multiplies: so many days must fit a duration.
func lifeOf(days int) (time.Duration, error) {
	if most := int(ca.MaxLife / day); days < 1 || days > most {
		return 0, usage(fmt.Errorf("--days: %d must be at least 1, and at most %d", days, most))
	}
	return time.Duration(days) * day, nil
}

func newCAInit(a *app) *cobra.Command {
	var dir, name string
	var days int
	cmd := &cobra.Command{
		Use: "init", Short: "Make a certificate authority",
		Long: `Makes a certificate authority (ECDSA P-256) in a directory: ca.crt for every part of
the deployment, and ca.key, readable by its owner alone. One that is there stays:
another key would make all its certificates worthless.`,
		Example: `  lockstep ca init --dir /root/ca --name "lockstep of example.org"`, Args: noArgs,
	}
	caDir(cmd, &dir)
	cmd.Flags().StringVar(&name, "name", "lockstep", "name of the authority in its certificate")
	daysFlag(cmd, &days, caDays, "days until it ends, and everything that it has issued with it")
	a.jsonFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		life, err := lifeOf(days)
		if err != nil {
			return err
		}
		if name == "" || len(name) > ca.MaxName {
			return usage(fmt.Errorf("--name: %d bytes, 1 to %d are possible", len(name), ca.MaxName))
		}
		d, err := ca.Create(dir, name, time.Now(), life)
		if err != nil {
			return err
		}
		row := caRow{Kind: "ca", Name: name, Cert: filepath.Join(dir, ca.CertFile), Key: filepath.Join(dir, ca.KeyFile), NotAfter: d.Cert.NotAfter.UTC()}
		return a.printCARow(row)
	}
	return cmd
}

func newCAIssue(a *app) *cobra.Command {
	var dir string
	var hosts []string
	var days int
	var replace bool
	cmd := &cobra.Command{
		Use: "issue KIND NAME", Short: "Issue a certificate",
		Long: `Makes a key and a certificate for a part of the deployment, in a folder of the
directory named for the kind:

  node        links between nodes, and the node as a client of etcd. NAME is the
              node's id, which other nodes compare with what it says it is
  controller  the controller as a client of etcd
  etcd        a member of etcd, for clients and for other members
  api         the REST API

Those of etcd and the API are for the hosts of --host, or else for NAME as a host.
The key is readable by its owner alone: move it to where it belongs. To renew a
certificate issue it again with --replace; nodes read their files again when they
change.`,
		Example: `  lockstep ca issue node az1-node-1
  lockstep ca issue etcd etcd-1 --host etcd-1.example.org --host 10.0.1.5
  lockstep ca issue api api.example.org --days 90 --replace`,
		Args: exactArgs("KIND", "NAME"),
	}
	caDir(cmd, &dir)
	cmd.Flags().StringArrayVar(&hosts, "host", nil, "host name or IP address that clients use, of etcd and the API; repeat it")
	daysFlag(cmd, &days, issueDays, "days until the certificate ends")
	cmd.Flags().BoolVar(&replace, "replace", false, "take the place of the certificate and key that are there")
	a.jsonFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		life, err := lifeOf(days)
		if err != nil {
			return err
		}
		r := ca.Request{Kind: ca.Kind(args[0]), Name: args[1], Hosts: hosts, Life: life}
		if err := r.Check(); err != nil {
			return usage(err)
		}
		d, err := ca.Open(dir)
		if err != nil {
			return err
		}
		out, err := d.Issue(r, time.Now(), replace)
		if err != nil {
			return err
		}
		return a.printCARow(rowOf(out))
	}
	return cmd
}

func newCAShow(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "show", Short: "List the authority and what it has issued",
		Long: `Lists the authority and the certificates of its directory with their end, in UTC. What
was issued and moved away, the certificate file too, is not known here any more.`,
		Example: "  lockstep ca show --dir /root/ca\n  lockstep ca show --json", Args: noArgs,
	}
	caDir(cmd, &dir)
	a.jsonFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		d, err := ca.Open(dir)
		if err != nil {
			return err
		}
		issued, err := d.List()
		if err != nil {
			return err
		}
		rows := []caRow{{Kind: "ca", Name: d.Cert.Subject.CommonName, Cert: filepath.Join(dir, ca.CertFile), Key: filepath.Join(dir, ca.KeyFile), NotAfter: d.Cert.NotAfter.UTC()}}
		for _, i := range issued {
			rows = append(rows, rowOf(i))
		}
		if a.json {
			return a.printJSON(rows)
		}
		now := time.Now()
		cells := make([][]string, len(rows))
		for i, r := range rows {
			cells[i] = []string{r.Kind, r.Name, strings.Join(r.Names, " "), r.NotAfter.Format(time.RFC3339), daysLeft(r.NotAfter.Sub(now)), r.Cert}
		}
		return a.printTable([]string{"KIND", "NAME", "FOR", "ENDS", "LEFT", "CERTIFICATE"}, cells)
	}
	return cmd
}

func daysLeft(left time.Duration) string {
	if left <= 0 {
		return "ended"
	}
	return fmt.Sprintf("%d d", int(left/day))
}

// caRow is a certificate as these commands print it.
type caRow struct {
	Kind     string    `json:"kind"`
	Name     string    `json:"name"`
	Names    []string  `json:"names,omitempty"` // what it proves to be
	NotAfter time.Time `json:"not_after"`
	Cert     string    `json:"cert"`
	Key      string    `json:"key"`
}

func rowOf(i ca.Issued) caRow {
	return caRow{Kind: string(i.Kind), Name: i.Name, Names: i.Names, NotAfter: i.NotAfter.UTC(), Cert: i.Cert, Key: i.Key}
}

func (a *app) printCARow(r caRow) error {
	if a.json {
		return a.printJSON(r)
	}
	return a.printFields([][2]string{
		{"kind", r.Kind},
		{"name", r.Name},
		{"for", orDash(strings.Join(r.Names, " "))},
		{"ends", r.NotAfter.Format(time.RFC3339)},
		{"certificate", r.Cert},
		{"key", r.Key},
	})
}
