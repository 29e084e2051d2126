package rig

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
)

// EtcdWord, as the first argument, makes a test binary an etcd member; Etcd's flags follow.
const EtcdWord = "etcd-member"

// EtcdArgs is the command line of a member, which keeps its data in dir. client and peer are host:port,
// cluster is as etcd's own --initial-cluster.
func EtcdArgs(name, dir, client, peer, cluster string) ([]string, error) {
	self, err := os.Executable()
	return []string{self, EtcdWord, "-name", name, "-dir", dir, "-client", client, "-peer", peer, "-cluster", cluster}, err
}

// EtcdMain runs a member until SIGTERM and gives the exit code. It is etcd's own server as a library,
// synced to disk as ever. Its traffic is plain: package etcdstore, which refuses that outside of the
// loopback, is not asked.
func EtcdMain(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	f := flag.NewFlagSet(EtcdWord, flag.ExitOnError)
	c := embed.NewConfig()
	f.StringVar(&c.Name, "name", "", "")
	f.StringVar(&c.Dir, "dir", "", "")
	f.StringVar(&c.InitialCluster, "cluster", "", "")
	client, peer := f.String("client", "", ""), f.String("peer", "", "")
	_ = f.Parse(args) // ends the process by itself
	at := func(addr string) []url.URL { return []url.URL{{Scheme: "http", Host: addr}} }
	c.ListenClientUrls, c.AdvertiseClientUrls = at(*client), at(*client)
	c.ListenPeerUrls, c.AdvertisePeerUrls = at(*peer), at(*peer)
	c.TickMs, c.ElectionMs = 50, 500
	c.LogLevel = "error"
	e, err := embed.StartEtcd(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start etcd:", err)
		return 1
	}
	defer e.Close()
	select {
	case <-ctx.Done():
	case <-e.Server.StopNotify():
		fmt.Fprintln(os.Stderr, "etcd stopped by itself")
		return 1
	case err := <-e.Err():
		fmt.Fprintln(os.Stderr, "etcd:", err)
		return 1
	}
	return 0
}
