package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// exportStep is how much of an image is read at once, in bytes; exportHole is the granularity at
// which zeroes become holes.
const (
	exportStep = 4 << 20
	exportHole = 64 << 10
)

// groupDivergenceExport is the command that copies a divergence image into files.
func (a *app) groupDivergenceExport() *cobra.Command {
	var dir, pair string
	cmd := &cobra.Command{
		Use: "export GROUP IMAGE", Short: "Copy a divergence image into raw files",
		Long: `Copies the volumes of a divergence image into sparse raw files in a directory, each
named like its export with .raw at the end. It reads from the nodes' NBD servers: where
those listen on Unix sockets, run it on the node's host, with --pair for the volumes of
that node. A file that exists is never overwritten. A file appears when it is whole and
durable; an export that is interrupted leaves none that is not, and can be run again.`,
		Example: "  lockstep group divergence export shop 12 --dir /srv/rescue\n  lockstep group divergence export shop 12 --pair db --dir /srv/rescue",
		Args:    exactArgs("GROUP", "IMAGE"),
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "directory of the files; it must exist")
	cmd.Flags().StringVar(&pair, "pair", "", "export only this pair's volume (name or id)")
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		volumes, err := divergedVolumes(ctx, c, args[0], args[1], pair)
		if err != nil {
			return err
		}
		files := make([]exported, len(volumes))
		for i, v := range volumes {
			files[i] = exported{PairID: v.PairID, VolumeID: v.VolumeID, Path: filepath.Join(dir, v.Export+".raw")}
			if err := exportable(files[i].Path); err != nil {
				return err
			}
		}
		for i, v := range volumes {
			if files[i].Bytes, err = a.exportVolume(ctx, v, files[i].Path); err != nil {
				return fmt.Errorf("export %s of node %s: %w", v.Export, v.Node, err)
			}
		}
		if a.json {
			return a.printJSON(files)
		}
		rows := make([][]string, len(files))
		for i, f := range files {
			rows[i] = []string{f.PairID, f.VolumeID, fmt.Sprint(f.Bytes), f.Path}
		}
		return a.printTable([]string{"PAIR", "VOLUME", "BYTES", "FILE"}, rows)
	})
}

// exported is a file that was made.
type exported struct {
	PairID   string `json:"replication_id"`
	VolumeID string `json:"volume_id"`
	Path     string `json:"path"`
	Bytes    int64  `json:"bytes"` // size of the file, holes included
}

// divergedVolumes finds an image's volumes, or the one of a pair, all of them there to be read.
func divergedVolumes(ctx context.Context, c *client.Client, group, image, pair string) ([]client.DivergedVolume, error) {
	g, err := findGroup(ctx, c, group)
	if err != nil {
		return nil, err
	}
	if pair != "" {
		p, err := findPair(ctx, c, pair)
		if err != nil {
			return nil, err
		}
		pair = p.ID
	}
	images, err := c.DivergenceImages(ctx, g.ID)
	if err != nil {
		return nil, err
	}
	var found []client.DivergedVolume
	for _, i := range images {
		for _, v := range i.Volumes {
			if i.ID != image || pair != "" && v.PairID != pair {
				continue
			}
			if v.URI == nil {
				return nil, fmt.Errorf("group %s: node %s does not serve %s now: look again when it is alive (lockstep node list)", g.ID, v.Node, v.Export)
			}
			found = append(found, v)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("group %s: %w: no volume of a divergence image %s (lockstep group divergence list %s); an image is there once the node of the side that lost has returned",
			g.ID, lockstep.ErrNotFound, image, group)
	}
	return found, nil
}

// exportable refuses a file that exists, and a directory that does not.
func exportable(path string) error {
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return usage(fmt.Errorf("--dir %s is not a directory that can be looked into: %w", filepath.Dir(path), errors.Join(err, fs.ErrInvalid)))
	}
	switch _, err := os.Lstat(path); {
	case err == nil:
		return usage(fmt.Errorf("%s exists, and is not overwritten: move it away, or choose another --dir", path))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return nil
}

func (a *app) exportVolume(ctx context.Context, v client.DivergedVolume, path string) (int64, error) {
	source, err := nbdclient.Dial(ctx, *v.URI)
	if err != nil {
		return 0, fmt.Errorf("read from %s: %w (a Unix socket is reached on its node's host only)", *v.URI, err)
	}
	defer func() { _ = source.Close() }() // everything was read
	meter := newMeter(a.err, "export of "+v.Export)
	defer meter.end()
	size := source.Size()
	return size, exportFile(ctx, source, path, func(done int64) {
		meter.show(look{text: "copied", percent: int(done * 100 / max(size, 1))})
	})
}

// exportFile copies a device into a new sparse file, which is there, whole and durable, when it
// returns nil, and is not there otherwise.
func exportFile(ctx context.Context, source block.Device, path string, progress func(done int64)) (err error) {
	part, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".part-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, part.Close(), os.Remove(part.Name())) }()
	if err := exportBytes(ctx, source, part, progress); err != nil {
		return err
	}
	if err := part.Sync(); err != nil {
		return err
	}
	// Not a rename, which would replace a file that somebody has made meanwhile.
	if err := os.Link(part.Name(), path); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func exportBytes(ctx context.Context, source block.Device, to *os.File, progress func(done int64)) error {
	size := source.Size()
	if err := to.Truncate(size); err != nil {
		return err
	}
	buf, zeroes := make([]byte, exportStep), make([]byte, exportHole)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(exportStep, size-off)
		extents, err := source.Extents(ctx, off, n)
		if err != nil {
			return err
		}
		for _, e := range extents {
			if !e.Zero {
				if err := exportRange(ctx, source, to, buf[:e.Len], off, zeroes); err != nil {
					return err
				}
			}
			off += e.Len
		}
		progress(off)
	}
	return nil
}

// exportRange copies len(buf) bytes and leaves out what is zero.
func exportRange(ctx context.Context, source block.Device, to *os.File, buf []byte, off int64, zeroes []byte) error {
	if err := source.ReadAt(ctx, buf, off); err != nil {
		return err
	}
	for len(buf) > 0 {
		n := min(len(buf), len(zeroes))
		if string(buf[:n]) != string(zeroes[:n]) {
			if _, err := to.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
