package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
)

const memPage = 4096

// ErrGone given by an OnOp function, makes an operation not happen at all, as for a process that
// has been killed: not even the damage of a failed fdatasync.
var ErrGone = errors.New("the process is gone")

// Mem is a file system in memory that knows what of it is durable. It is a double for tests: its
// power can be lost (CrashClone), its operations fail on request (OnOp), and it can be made to run
// full. Directory entries become durable by SyncDir only, contents by Fdatasync only.
type Mem struct {
	mu      sync.Mutex // guards everything below except hook
	root    *node
	total   int64 // bytes
	used    int64 // bytes of pages in files, removed ones included while open
	reflink bool
	noPunch bool
	mount   int

	hookMu sync.RWMutex
	hook   func(Op) error
}

// node is a directory or a regular file. For a file, pages and size are what a reader sees,
// stable what the platter holds, and pending the unsynced changes in order.
type node struct {
	dir     bool
	entries map[string]*node
	durable map[string]*node
	log     []dirOp

	pages   pages
	size    int64
	stable  pages
	stSize  int64
	pending []change
	locked  *memFile
	links   int // entries and open files; at zero its space is free again
}

// pages holds a file's pages; a missing one is a hole. A page never changes: a write replaces it, so
// that the present contents, unsynced changes, the platter and clones can share it.
type pages map[int64]*[memPage]byte

// dirOp puts n under name (nil: removes it) and, for a rename, removes from in the same step.
type dirOp struct {
	name, from string
	n          *node
}

// change is one unsynced change of one page or of the size.
type change struct {
	page int64
	data *[memPage]byte // contents after the write; nil: the page became a hole
	mask uint8          // which of the eight 512-byte sectors were written
	size int64          // new size; used when resize is set
	// resize changes the size instead of a page.
	resize bool
}

// NewMem returns an empty file system of 1 TiB whose root is "/".
func NewMem() *Mem {
	return &Mem{root: newDir(), total: 1 << 40, mount: 1}
}

func newDir() *node {
	return &node{dir: true, entries: map[string]*node{}, durable: map[string]*node{}}
}

// OnOp sets a function that is called before every operation with its label; an error makes the
// operation fail with it, having done nothing (a failed fdatasync loses the unsynced contents).
// The function may call CrashClone. nil removes it.
func (m *Mem) OnOp(f func(Op) error) {
	m.hookMu.Lock()
	defer m.hookMu.Unlock()
	m.hook = f
}

// SetReflink makes CloneFrom work or not (the default).
func (m *Mem) SetReflink(on bool) { m.mu.Lock(); m.reflink = on; m.mu.Unlock() }

// SetPunch makes PunchHole work (the default) or not.
func (m *Mem) SetPunch(on bool) { m.mu.Lock(); m.noPunch = !on; m.mu.Unlock() }

// SetTotal sets the size of the file system in bytes; writes that need more fail with ENOSPC.
func (m *Mem) SetTotal(bytes int64) { m.mu.Lock(); m.total = bytes; m.mu.Unlock() }

func (m *Mem) before(label, op string) error {
	m.hookMu.RLock()
	f := m.hook
	m.hookMu.RUnlock()
	if f == nil {
		return nil
	}
	return f(Op(label + ":" + op))
}

func split(p string) []string {
	p = strings.Trim(path.Clean("/"+p), "/")
	if p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

func pathErr(op, p string, err error) error { return &fs.PathError{Op: op, Path: p, Err: err} }

// dirOf finds the directory that holds the last part of p.
func (m *Mem) dirOf(op, p string) (*node, string, error) {
	parts := split(p)
	if len(parts) == 0 {
		return nil, "", pathErr(op, p, fs.ErrInvalid)
	}
	d := m.root
	for _, name := range parts[:len(parts)-1] {
		if d = d.entries[name]; d == nil || !d.dir {
			return nil, "", pathErr(op, p, fs.ErrNotExist)
		}
	}
	return d, parts[len(parts)-1], nil
}

func (m *Mem) unlink(n *node) {
	if n.links--; n.links == 0 && !n.dir {
		m.used -= int64(len(n.pages)) * memPage
		n.pages = pages{}
	}
}

// OpenFile implements FS.
func (m *Mem) OpenFile(label, p string, flags int) (File, error) {
	if err := m.before(label, "open"); err != nil {
		return nil, pathErr("open", p, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d, name, err := m.dirOf("open", p)
	if err != nil {
		return nil, err
	}
	n := d.entries[name]
	switch {
	case n == nil && flags&Create == 0:
		return nil, pathErr("open", p, fs.ErrNotExist)
	case n == nil:
		n = &node{pages: pages{}, stable: pages{}, links: 1}
		d.entries[name] = n
		d.log = append(d.log, dirOp{name: name, n: n})
	case n.dir:
		return nil, pathErr("open", p, syscall.EISDIR)
	case flags&Exclusive != 0:
		return nil, pathErr("open", p, fs.ErrExist)
	}
	n.links++
	f := &memFile{m: m, n: n, label: label, name: p}
	if flags&Truncate != 0 {
		f.truncate(0)
	}
	return f, nil
}

// Rename implements FS.
func (m *Mem) Rename(label, oldpath, newpath string) error {
	if err := m.before(label, "rename"); err != nil {
		return pathErr("rename", oldpath, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	od, oname, err := m.dirOf("rename", oldpath)
	if err != nil {
		return err
	}
	nd, nname, err := m.dirOf("rename", newpath)
	if err != nil {
		return err
	}
	n := od.entries[oname]
	if n == nil {
		return pathErr("rename", oldpath, fs.ErrNotExist)
	}
	if od != nd {
		return pathErr("rename", oldpath, fmt.Errorf("over directories: %w", ErrUnsupported))
	}
	if old := nd.entries[nname]; old != nil && old != n {
		m.unlink(old)
	}
	delete(od.entries, oname)
	nd.entries[nname] = n
	nd.log = append(nd.log, dirOp{name: nname, from: oname, n: n})
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(label, p string) error {
	if err := m.before(label, "remove"); err != nil {
		return pathErr("remove", p, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d, name, err := m.dirOf("remove", p)
	if err != nil {
		return err
	}
	n := d.entries[name]
	if n == nil {
		return pathErr("remove", p, fs.ErrNotExist)
	}
	m.unlink(n)
	delete(d.entries, name)
	d.log = append(d.log, dirOp{name: name})
	return nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(label, p string) error {
	if err := m.before(label, "mkdir"); err != nil {
		return pathErr("mkdir", p, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.root
	for _, name := range split(p) {
		n := d.entries[name]
		if n == nil {
			n = newDir()
			n.links = 1
			d.entries[name] = n
			d.log = append(d.log, dirOp{name: name, n: n})
		} else if !n.dir {
			return pathErr("mkdir", p, syscall.ENOTDIR)
		}
		d = n
	}
	return nil
}

func (m *Mem) lookupDir(op, p string) (*node, error) {
	d := m.root
	for _, name := range split(p) {
		if d = d.entries[name]; d == nil || !d.dir {
			return nil, pathErr(op, p, fs.ErrNotExist)
		}
	}
	return d, nil
}

// ReadDir implements FS.
func (m *Mem) ReadDir(label, p string) ([]string, error) {
	if err := m.before(label, "readdir"); err != nil {
		return nil, pathErr("readdir", p, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.lookupDir("readdir", p)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(d.entries))
	for name := range d.entries {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(label, p string) error {
	if err := m.before(label, "syncdir"); err != nil {
		return pathErr("sync", p, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.lookupDir("sync", p)
	if err != nil {
		return err
	}
	for _, op := range d.log {
		op.apply(d.durable)
	}
	d.log = nil
	return nil
}

func (op dirOp) apply(entries map[string]*node) {
	if op.from != "" {
		delete(entries, op.from)
	}
	if op.n == nil {
		delete(entries, op.name)
	} else {
		entries[op.name] = op.n
	}
}

// Space implements FS.
func (m *Mem) Space(string) (total, free int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total, max(0, m.total-m.used), nil
}

// MountID implements FS; a crash makes a new one.
func (m *Mem) MountID(string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprintf("mem%d", m.mount), nil
}

var _ FS = (*Mem)(nil)
