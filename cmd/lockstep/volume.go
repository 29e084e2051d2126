package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

func newVolumeCommand(a *app) *cobra.Command {
	cmd := parent("volume", "Create, show and change volumes",
		"A volume is a virtual disk in one availability zone. Two of the same size and type,\nin different zones, make a replication pair.\n\nVOLUME is an id or a name that only one volume has.",
		"  lockstep volume create --name db --size 10 --availability-zone az1 --wait\n  lockstep volume list")
	a.cloudFlags(cmd)
	cmd.AddCommand(a.volumeList(), a.volumeShow(), a.volumeCreate(), a.volumeUpdate(), a.volumeExtend(),
		a.volumeDelete(), a.volumeRelease(), a.volumeConnect())
	return cmd
}

func (a *app) volumeList() *cobra.Command {
	var f client.Filter
	cmd := &cobra.Command{
		Use: "list", Short: "List volumes", Long: "Lists the project's volumes, the newest first.",
		Example: "  lockstep volume list --status available --json", Args: noArgs,
	}
	cmd.Flags().StringVar(&f.Name, "name", "", "only those of this name")
	cmd.Flags().StringVar(&f.Status, "status", "", "only those in this status")
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		volumes, err := c.Volumes(ctx, f)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(append([]client.Volume{}, volumes...))
		}
		rows := make([][]string, len(volumes))
		for i, v := range volumes {
			rows[i] = []string{v.ID, orDash(deref(v.Name)), v.Status, strconv.FormatInt(v.SizeGiB, 10), v.AvailabilityZone, v.Type, orDash(v.ReplicationStatus)}
		}
		return a.printTable([]string{"ID", "NAME", "STATUS", "GIB", "AZ", "TYPE", "REPLICATION"}, rows)
	})
}

func (a *app) volumeShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show VOLUME", Short: "Show a volume", Long: "Shows one volume.",
		Example: "  lockstep volume show db", Args: exactArgs("VOLUME"),
	}
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		v, err := findVolume(ctx, c, args[0])
		if err != nil {
			return err
		}
		return a.printVolume(v)
	})
}

func (a *app) printVolume(v client.Volume) error {
	if a.json {
		return a.printJSON(v)
	}
	return a.printFields([][2]string{
		{"id", v.ID},
		{"name", orDash(deref(v.Name))},
		{"description", orDash(deref(v.Description))},
		{"status", v.Status},
		{"size (GiB)", strconv.FormatInt(v.SizeGiB, 10)},
		{"type", v.Type},
		{"availability zone", v.AvailabilityZone},
		{"replication status", orDash(v.ReplicationStatus)},
		{"multiattach", strconv.FormatBool(v.Multiattach)},
		{"created", formatTime(v.CreatedAt)},
		{"updated", formatTime(v.UpdatedAt)},
	})
}

func formatTime(t client.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

func (a *app) volumeCreate() *cobra.Command {
	var v client.VolumeCreate
	var w waiter
	var name, description string
	cmd := &cobra.Command{
		Use: "create", Short: "Create a volume", Long: "Creates an empty volume.",
		Example: "  lockstep volume create --name db --size 10 --availability-zone az1 --wait", Args: noArgs,
	}
	cmd.Flags().StringVar(&name, "name", "", "name, at most 255 bytes")
	cmd.Flags().StringVar(&description, "description", "", "description, at most 255 bytes")
	cmd.Flags().Int64Var(&v.SizeGiB, "size", 0, "size in GiB")
	cmd.Flags().StringVar(&v.Type, "type", "", "volume type (default: the server's)")
	cmd.Flags().StringVar(&v.AvailabilityZone, "availability-zone", "", "zone (default: the server's)")
	cmd.Flags().StringToStringVar(&v.Metadata, "metadata", nil, "metadata, key=value")
	cmd.Flags().BoolVar(&v.Multiattach, "multiattach", false, "may be attached to several servers")
	w.flags(cmd)
	a.jsonFlag(cmd)
	run := a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		v.Name, v.Description = optional(cmd, "name", name), optional(cmd, "description", description)
		created, err := c.CreateVolume(ctx, v)
		if err != nil {
			return err
		}
		if w.wait {
			if err := a.untilVolume(ctx, w, c, created.ID); err != nil {
				return err
			}
			if created, err = c.Volume(ctx, created.ID); err != nil {
				return err
			}
		}
		return a.printVolume(created)
	})
	return needFlags(run, "size")
}

// needFlags makes flags mandatory, with our exit code.
func needFlags(cmd *cobra.Command, names ...string) *cobra.Command {
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, n := range names {
			if !cmd.Flags().Changed(n) {
				return usage(fmt.Errorf("--%s must be given; see \"%s --help\"", n, cmd.CommandPath()))
			}
		}
		return nil
	}
	return cmd
}

func (a *app) volumeUpdate() *cobra.Command {
	var name, description string
	var metadata map[string]string
	cmd := &cobra.Command{
		Use: "update VOLUME", Short: "Change name, description or metadata", Long: "Changes a volume's texts.",
		Example: "  lockstep volume update db --name db-old", Args: exactArgs("VOLUME"),
	}
	cmd.Flags().StringVar(&name, "name", "", "new name")
	cmd.Flags().StringVar(&description, "description", "", "new description")
	cmd.Flags().StringToStringVar(&metadata, "metadata", nil, "new metadata, key=value, in place of the old")
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		v, err := findVolume(ctx, c, args[0])
		if err != nil {
			return err
		}
		v, err = c.UpdateVolume(ctx, v.ID, client.VolumeUpdate{
			Name: optional(cmd, "name", name), Description: optional(cmd, "description", description), Metadata: metadata,
		})
		if err != nil {
			return err
		}
		return a.printVolume(v)
	})
}

func (a *app) volumeExtend() *cobra.Command {
	var size int64
	var w waiter
	cmd := &cobra.Command{
		Use: "extend VOLUME", Short: "Grow a volume",
		Long:    "Grows a volume that is in no pair. Both volumes of a pair are grown by\n`lockstep group extend`.",
		Example: "  lockstep volume extend db --size 20 --wait", Args: exactArgs("VOLUME"),
	}
	cmd.Flags().Int64Var(&size, "size", 0, "new size in GiB")
	w.flags(cmd)
	return needFlags(a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		v, err := findVolume(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := c.ExtendVolume(ctx, v.ID, size); err != nil || !w.wait {
			return err
		}
		return a.until(ctx, w, "volume "+v.ID, func(ctx context.Context) (look, error) {
			v, err := c.Volume(ctx, v.ID)
			if err == nil && isErrorStatus(v.Status) {
				err = failed("volume "+v.ID, v.Status, nil)
			}
			return look{text: v.Status, percent: -1, done: v.SizeGiB >= size && v.Status != "extending"}, err
		})
	}), "size")
}

func (a *app) volumeDelete() *cobra.Command {
	var w waiter
	var yes confirmer
	cmd := &cobra.Command{
		Use: "delete VOLUME...", Short: "Delete volumes",
		Long:    "Deletes volumes with all their data. A volume in a pair cannot be deleted.",
		Example: "  lockstep volume delete db --yes --wait", Args: atLeastArgs("VOLUME"),
	}
	w.flags(cmd)
	yes.flag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		for _, ref := range args {
			v, err := findVolume(ctx, c, ref)
			if err != nil {
				return err
			}
			if err := a.confirm(yes, fmt.Sprintf("Volume %s (%s, %d GiB in %s) and all its data will be deleted.", v.ID, orDash(printable(deref(v.Name))), v.SizeGiB, v.AvailabilityZone)); err != nil {
				return err
			}
			if err := c.DeleteVolume(ctx, v.ID); err != nil {
				return err
			}
			if w.wait {
				err := a.untilGone(ctx, w, "volume "+v.ID, func(ctx context.Context) (string, error) {
					v, err := c.Volume(ctx, v.ID)
					return v.Status, err
				})
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (a *app) volumeRelease() *cobra.Command {
	cmd := &cobra.Command{
		Use: "release VOLUME", Short: "Serve a former DR volume as a plain disk",
		Long: `After its pair is gone, the volume that was the secondary stays unserved: it holds
an older image, and serving it beside its former primary would let two servers
believe that they have the same disk. This command makes it a plain volume. It needs
the role operator.`,
		Example: "  lockstep volume release db-dr", Args: exactArgs("VOLUME"),
	}
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		v, err := findVolume(ctx, c, args[0])
		if err != nil {
			return err
		}
		return c.ReleaseVolume(ctx, v.ID)
	})
}

func (a *app) volumeConnect() *cobra.Command {
	cmd := &cobra.Command{
		Use: "connect VOLUME", Short: "Print where the volume can be opened",
		Long:    "Prints the NBD URI of a volume. It can be given to qemu, qemu-img, nbdinfo, fio\nor any other NBD client.",
		Example: "  qemu-img info \"$(lockstep volume connect db)\"", Args: exactArgs("VOLUME"),
	}
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		v, err := findVolume(ctx, c, args[0])
		if err != nil {
			return err
		}
		uri, err := c.ConnectionURI(ctx, v.ID)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]string{"volume": v.ID, "uri": uri})
		}
		_, err = fmt.Fprintln(a.out, uri)
		return err
	})
}
