package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// spaceReserve is what Create leaves free in a pool for metadata and groups, bytes.
const spaceReserve = 64 << 20

// defaultMaxIntent is the default of Options.MaxIntentBytes.
const defaultMaxIntent = 4 * lockstep.GiB

// Options of a pool; the zero value is usable.
type Options struct {
	// FS is the file system; nil means the operating system's.
	FS vfs.FS
	// Logger receives what an operator should see; nil means slog.Default().
	Logger *slog.Logger
	// MaxIntentBytes is the bound on marked bytes per volume that the caller keeps by clearing;
	// the pool only hands it on (Volume.MaxIntentBytes). 0 means 4 GiB.
	MaxIntentBytes int64
	// BootIDPath overrides /proc/sys/kernel/random/boot_id in tests.
	BootIDPath string
}

// Pool is an open pool directory. Its methods may be called concurrently.
type Pool struct {
	dir  string
	opts Options
	fs   vfs.FS
	log  *slog.Logger
	lock vfs.File
	node nodeState

	mu     sync.Mutex // guards volumes and closed; held over the opening of a volume's files
	vols   map[lockstep.VolumeID]*Volume
	closed bool

	keepMu  sync.Mutex // held while a divergence image is made or removed
	imageMu sync.Mutex // guards images
	images  map[lockstep.VolumeID][]lockstep.Epoch

	groupMu sync.Mutex // guards groups
	groups  map[lockstep.GroupID]*sync.Mutex

	found found
}

// OpenPool opens the directory, making it a pool if it is empty or missing, takes its lock,
// finishes removals that a crash interrupted and counts the start. When it returns, the new start
// counter is durable. ErrInUse if somebody else has the pool; lockstep.ErrCorrupt if node.json
// cannot be trusted.
func OpenPool(dir string, o Options) (*Pool, error) {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.MaxIntentBytes <= 0 {
		o.MaxIntentBytes = defaultMaxIntent
	}
	if o.BootIDPath == "" {
		o.BootIDPath = "/proc/sys/kernel/random/boot_id"
	}
	p := &Pool{
		dir: dir, opts: o, fs: o.FS, log: o.Logger,
		vols: map[lockstep.VolumeID]*Volume{}, groups: map[lockstep.GroupID]*sync.Mutex{},
		found:  found{bytes: -1},
		images: map[lockstep.VolumeID][]lockstep.Epoch{},
	}
	if err := p.open(); err != nil {
		if p.lock != nil {
			err = errors.Join(err, p.lock.Close())
		}
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	return p, nil
}

func (p *Pool) open() error {
	if err := p.fs.MkdirAll("pool", filepath.Join(p.dir, groupsDir)); err != nil {
		return err
	}
	lock, err := p.fs.OpenFile("lock", filepath.Join(p.dir, lockFile), vfs.Create)
	if err != nil {
		return err
	}
	p.lock = lock
	if err := lock.Lock(); err != nil {
		if errors.Is(err, vfs.ErrLocked) {
			return fmt.Errorf("%w: %w", ErrInUse, err)
		}
		return err
	}
	err = p.fs.SyncDir("pool", filepath.Dir(filepath.Clean(p.dir)))
	if errors.Is(err, fs.ErrPermission) {
		p.log.Warn("the parent directory cannot be synced; a power loss right now could lose a new pool", "err", err)
		err = nil
	}
	if err != nil {
		return err
	}
	// A killed process may have renamed without syncing the directory. What this one will read must
	// not be taken back by a later power loss.
	for _, d := range []string{p.dir, filepath.Join(p.dir, groupsDir)} {
		if err := p.fs.SyncDir("pool", d); err != nil {
			return err
		}
	}
	if err := p.cleanUp(); err != nil {
		return err
	}
	return p.countStart()
}

// cleanUp finishes removals and deletes temporary files.
func (p *Pool) cleanUp() error {
	names, err := p.fs.ReadDir("pool", p.dir)
	if err != nil {
		return err
	}
	p.indexImages(names)
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, extRemoved); ok {
			if err := p.finishRemove(lockstep.VolumeID(id)); err != nil {
				return err
			}
		}
		if strings.HasSuffix(name, extTmp) {
			if err := p.fs.Remove("tmp", filepath.Join(p.dir, name)); err != nil {
				return err
			}
		}
	}
	groups := filepath.Join(p.dir, groupsDir)
	if names, err = p.fs.ReadDir("pool", groups); err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, extTmp) {
			if err := p.fs.Remove("tmp", filepath.Join(groups, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Dir is the directory of the pool.
func (p *Pool) Dir() string { return p.dir }

// InstanceID identifies this directory; a copy of the directory has the same.
func (p *Pool) InstanceID() string { return p.node.Instance }

// StartCounter is how often the directory has been opened, this time included.
func (p *Pool) StartCounter() uint64 { return p.node.Starts }

// BootID identifies the kernel's boot and the mount of the pool: it stays the same while nothing
// can have lost page cache. A process in a new mount namespace sees another mount and gets another
// id, which costs a repair and is safe.
func (p *Pool) BootID() (lockstep.BootID, error) {
	boot, err := os.ReadFile(p.opts.BootIDPath)
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	id := strings.TrimSpace(string(boot))
	if id == "" {
		return "", fmt.Errorf("read boot id: %s is empty", p.opts.BootIDPath)
	}
	mount, err := p.fs.MountID(p.dir)
	if err != nil {
		return "", fmt.Errorf("identify mount of pool: %w", err)
	}
	return lockstep.BootID(id + "/" + mount), nil
}

// Space gives the bytes of the file system that holds the pool, in total and free for use.
func (p *Pool) Space() (total, free int64, err error) {
	if total, free, err = p.fs.Space(p.dir); err != nil {
		return 0, 0, fmt.Errorf("space of pool: %w", err)
	}
	return total, free, nil
}

// Volumes lists the volumes of the pool, sorted.
func (p *Pool) Volumes() ([]lockstep.VolumeID, error) {
	names, err := p.fs.ReadDir("pool", p.dir)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var ids []lockstep.VolumeID
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, extMeta); ok && checkID("volume", id) == nil {
			ids = append(ids, lockstep.VolumeID(id))
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Close closes all volumes and gives up the lock. It makes nothing durable. Calls on volumes that
// are still running end with ErrClosed or, having been under way, normally.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	var err error
	for _, v := range p.vols {
		err = errors.Join(err, v.close())
	}
	clear(p.vols)
	return errors.Join(err, p.lock.Close())
}

// replace makes data the contents of path, atomically and durably: readers and crashes see the
// old contents or the new.
func (p *Pool) replace(label, path string, data []byte) error {
	tmp := path + extTmp
	err := func() error {
		f, err := p.fs.OpenFile(label, tmp, vfs.Create|vfs.Truncate)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(data, 0)
		if err == nil {
			err = f.Fdatasync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if err := p.fs.Rename(label, tmp, path); err != nil {
			return err
		}
		return p.fs.SyncDir(label, filepath.Dir(path))
	}()
	if err != nil {
		return fmt.Errorf("replace %s: %w", filepath.Base(path), wrapSpace(err))
	}
	return nil
}

// readAll reads a file of at most limit bytes.
func (p *Pool) readAll(label, path string, limit int64) ([]byte, error) {
	f, err := p.fs.OpenFile(label, path, 0)
	if err != nil {
		return nil, err
	}
	data, err := func() ([]byte, error) {
		size, err := f.Size()
		if err != nil {
			return nil, err
		}
		if size > limit {
			return nil, fmt.Errorf("%d bytes, more than %d: %w", size, limit, lockstep.ErrCorrupt)
		}
		data := make([]byte, size)
		return data, readFull(f, data, 0)
	}()
	return data, errors.Join(err, f.Close())
}

// removeFiles removes those of the files that exist, durably, in the order given.
func (p *Pool) removeFiles(label string, paths ...string) error {
	for _, path := range paths {
		if err := p.fs.Remove(label, path); ignoreMissing(err) != nil {
			return err
		}
	}
	return p.fs.SyncDir(label, p.dir)
}
