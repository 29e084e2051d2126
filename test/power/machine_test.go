package power

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/test/need"
	"github.com/lockstep-dr/lockstep/test/rig"
)

// machine is a host with a storage node, in a virtual machine without hardware support, so that it runs
// wherever QEMU does. Its disk is a file.
type machine struct {
	*rig.Process
	az        string
	nbd, repl string // host:port here, which lead into the machine
	disk      string
	console   string
}

const diskBytes = 5 << 30 // sparse: two volumes, and a clone of each in a synchronization

// drivers of the kernel that are modules.
var drivers = []string{
	"virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
	"failover", "net_failover", "virtio_net", "virtio_blk",
}

// kernel finds a kernel of Debian for virtual machines and the directory of its modules. It has ext4.
func kernel(t *testing.T) (image, modules string) {
	t.Helper()
	found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64") // the pattern is well formed
	slices.Sort(found)
	if len(found) == 0 {
		need.Missing(t, "no kernel for virtual machines (linux-image-cloud-amd64) in /boot")
	}
	image = found[len(found)-1]
	return image, "/lib/modules/" + strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
}

// newMachine makes a machine that is off.
func newMachine(t *testing.T, dir, az, etcd string, bin, guest []byte) *machine {
	t.Helper()
	image, modules := kernel(t)
	m := &machine{az: az, nbd: freeAddr(t), repl: freeAddr(t), disk: filepath.Join(dir, az+".disk"), console: filepath.Join(dir, az+".console")}
	_, replPort, _ := net.SplitHostPort(m.repl) // freeAddr's
	_, etcdPort, _ := net.SplitHostPort(etcd)
	// It is slow, and may not look dead for that.
	conf := fmt.Sprintf("id: %s-1\naz: %s\npool: /disk/pool\nreplicate: 0.0.0.0:7000\ninsecure_replication: true\nadvertise: 10.0.2.2:%s\nnbd_address: 0.0.0.0:10809\n"+
		"etcd_endpoints: [http://10.0.2.2:%s]\ntrip_after: 4s\nlease_ttl: 2s\nheartbeat: 500ms\nflush_every: 10s\n", az, az, replPort, etcdPort)
	var cpio archive
	for _, d := range []string{"dev", "proc", "sys", "tmp", "etc", "modules"} {
		cpio.dir(d)
	}
	cpio.file("init", 0o755, guest)
	cpio.file("lockstep", 0o755, bin)
	cpio.file("node.yaml", 0o644, []byte(conf))
	cpio.file("etc/machine-id", 0o644, fmt.Appendf(nil, "%032x\n", az))
	for _, name := range drivers {
		var path string
		_ = filepath.WalkDir(modules, func(p string, e os.DirEntry, err error) error {
			if err == nil && e.Name() == name+".ko" {
				path = p
			}
			return err
		})
		raw, err := os.ReadFile(path)
		if err != nil {
			need.Missing(t, "the driver %s in %s: %v", name, modules, err)
		}
		cpio.file("modules/"+name+".ko", 0o644, raw)
	}
	initrd := filepath.Join(dir, az+".initrd")
	if err := os.WriteFile(initrd, cpio.end(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(m.disk, diskBytes); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", m.disk).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	m.Process = rig.NewProcess(t, az+"-1", m.console, nil, "qemu-system-x86_64",
		"-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1", "-m", "448", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on", "-serial", "stdio",
		"-drive", "file="+m.disk+",format=raw,if=virtio,cache=writeback",
		"-netdev", "user,id=n,hostfwd=tcp:"+m.repl+"-:7000,hostfwd=tcp:"+m.nbd+"-:10809", "-device", "virtio-net-pci,netdev=n,romfile=")
	return m
}

var bootLine = regexp.MustCompile(`(?m)^guest: boot ([0-9a-f-]{36})`)

// boots lists the boot ids of all lives so far.
func (m *machine) boots() []string {
	raw, err := os.ReadFile(m.console)
	if err != nil {
		return nil
	}
	var list []string
	for _, b := range bootLine.FindAllSubmatch(raw, -1) {
		list = append(list, string(b[1]))
	}
	return list
}

// powerOff takes the power away: no more than what reached the disk is left.
func (m *machine) powerOff() { m.Kill() }

// archive is an initial file system for a kernel: cpio in the format "newc".
type archive struct {
	buf   bytes.Buffer
	inode int
}

func (a *archive) dir(name string) { a.add(name, 0o040755, nil) }

func (a *archive) file(name string, mode int, data []byte) { a.add(name, 0o100000|mode, data) }

func (a *archive) add(name string, mode int, data []byte) {
	a.inode++
	fmt.Fprintf(&a.buf, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.buf.WriteString(name + "\x00")
	a.align()
	a.buf.Write(data)
	a.align()
}

func (a *archive) align() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *archive) end() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}

// freeAddr is an address of the loopback that nothing listens at.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
