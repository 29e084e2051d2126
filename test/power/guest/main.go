// Command guest is the init of the small virtual machines of test/power: it loads the drivers, takes
// slirp's address, mounts the disk, and runs a storage node until the power goes. There is nothing
// else in the machine.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	fmt.Println("guest:", run())
	// PID 1 may not end. A machine that does nothing is what its test will find.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// run returns when the node has ended, which it does not by itself.
func run() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := errors.Join(os.MkdirAll(m.at, 0o755), unix.Mount(m.kind, m.at, m.kind, 0, "")); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := load("/modules"); err != nil {
		return err
	}
	if err := network(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := errors.Join(os.MkdirAll("/disk", 0o755), unix.Mount("/dev/vda", "/disk", "ext4", 0, "")); err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	if err := os.MkdirAll("/disk/pool", 0o700); err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	fmt.Printf("guest: boot %s\n", bytes.TrimSpace(boot))
	cmd := exec.Command("/lockstep", "node", "--config", "/node.yaml")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return fmt.Errorf("the node has ended: %w", cmd.Run())
}

// load loads all drivers, in whatever order their needs allow.
func load(dir string) error {
	list, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return err
	}
	for len(list) > 0 {
		var left []string
		var errs []error
		for _, path := range list {
			if err := loadOne(path); err != nil {
				left, errs = append(left, path), append(errs, err)
			}
		}
		if len(left) == len(list) {
			return errors.Join(errs...)
		}
		list = left
	}
	return nil
}

func loadOne(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", filepath.Base(path), err)
	}
	return nil
}

// network gives the only interface the address that slirp forwards to. All that is outside is at
// 10.0.2.2, on the same net: no route is needed.
func network() error {
	list, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }()
	for _, e := range list {
		name := e.Name()
		set := func(request uint, fill func(*unix.Ifreq) error) error {
			ifr, err := unix.NewIfreq(name)
			if err == nil {
				err = fill(ifr)
			}
			if err == nil {
				err = unix.IoctlIfreq(s, request, ifr)
			}
			return err
		}
		if strings.HasPrefix(name, "e") {
			err = errors.Join(
				set(unix.SIOCSIFADDR, func(i *unix.Ifreq) error { return i.SetInet4Addr([]byte{10, 0, 2, 15}) }),
				set(unix.SIOCSIFNETMASK, func(i *unix.Ifreq) error { return i.SetInet4Addr([]byte{255, 255, 255, 0}) }),
			)
		}
		err = errors.Join(err, set(unix.SIOCSIFFLAGS, func(i *unix.Ifreq) error { i.SetUint16(unix.IFF_UP); return nil }))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
