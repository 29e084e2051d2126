package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/test/proc"
)

// TestAControllerKilledInMidFailoverDoesNotStopIt: in half of the rounds the node that is to take
// over is stopped, so that the failover is under way for sure when the blow falls; in the others it
// falls at a random time after the call, within what a failover takes. In every second round the
// primary zone is lost, in the others it lives and is demoted.
func TestAControllerKilledInMidFailoverDoesNotStopIt(t *testing.T) {
	t.Parallel()
	const rounds = 10
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	zone := "az1"
	disks := g.disks(zone)
	c := newChains()
	hits, sure := 0, 0
	for round := range rounds {
		c.run(disks)
		c.progress(g, patience, 200)
		lost, stopped := round%2 == 1, round%4 < 2
		if lost {
			d.kill(d.members(zone)...)
		}
		if stopped {
			d.signal(syscall.SIGSTOP, d.members(other(zone))...)
		}
		delay := time.Duration(rand.IntN(40)) * time.Millisecond
		answered := make(chan error, 1)
		go func() { answered <- g.c.Act(d.ctx, g.id, client.ActionFailover) }()
		if stopped {
			g.eventually(patience, "the failover is under way", func() error {
				_, have, err := g.statuses()
				if err == nil && have.Status != "failovering" {
					err = errors.New("it is " + have.Status)
				}
				return err
			})
		} else {
			timer := time.NewTimer(delay)
			<-timer.C // the one wait that is not for a condition: it decides where the blow falls
		}
		killed := time.Now()
		d.kill("controller")
		err := <-answered
		d.start("controller")
		d.eventually(patience, "the API answers", func() error { _, _, err := g.statuses(); return err })
		if stopped {
			if _, have, err := g.statuses(); err != nil || have.Status != "failovering" {
				t.Errorf("round %d: the restarted controller says %s, %v; want failovering", round+1, have.Status, err)
			}
			d.signal(syscall.SIGCONT, d.members(other(zone))...)
			sure++
		}
		if err != nil {
			// The call was cut off: whether the transition was recorded is for the record to say.
			g.eventually(patience, "a failover is under way, or can be asked for", func() error {
				_, have, err := g.statuses()
				if err == nil && have.Status == "available" {
					if err = g.c.Act(d.ctx, g.id, client.ActionFailover); client.IsConflict(err) {
						err = nil // it was recorded just now
					}
				}
				return err
			})
		}
		g.until(patience, "failovered", "active-stopped", "0")
		if g.failoverSpanned(killed) {
			hits++
		} else if stopped {
			t.Errorf("round %d: by the history the failover was not under way at the kill", round+1)
		}
		if err := c.broken(g); err == nil {
			t.Fatal("the old primary still takes writes")
		}
		closeAll(disks)
		zone = other(zone)
		disks = g.disks(zone)
		if err := c.inspect(d.ctx, disks); err != nil {
			t.Fatalf("round %d, node stopped: %t, killed up to %s after the call, zone lost: %t: %v", round+1, stopped, delay, lost, err)
		}
		if lost {
			d.start(d.members(other(zone))...)
		}
		d.untilAlive(d.members("")...)
		g.act(client.ActionReprotect)
		g.untilActive()
	}
	c.run(disks)
	c.progress(g, patience, 200)
	flushAndCompare(g, c, disks)
	fmt.Printf("controller killed in mid-failover: rounds=%d failovering=%d of these with the node stopped=%d\n", rounds, hits, sure)
	if sure < rounds/2 || hits < sure {
		t.Errorf("of %d kills only %d fell into a failover", rounds, hits)
	}
}

// failoverSpanned reports whether the last failover was recorded before that moment, and its end
// after it.
func (g *group) failoverSpanned(at time.Time) bool {
	g.t.Helper()
	list, err := g.c.History(g.ctx, g.id)
	if err != nil {
		g.t.Fatal(err)
	}
	var began, ended time.Time
	for _, e := range list {
		switch {
		case strings.HasPrefix(e.What, "failover from"):
			began, ended = e.At.Time, time.Time{}
		case strings.HasPrefix(e.What, "failed over"):
			ended = e.At.Time
		}
	}
	return !began.IsZero() && began.Before(at) && ended.After(at)
}

func TestEverythingIsThereAfterARestartOfAll(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	credentials, err := os.ReadFile(filepath.Join(d.dir, "openrc"))
	if err != nil {
		t.Fatal(err)
	}
	_, before, err := g.statuses()
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"stopped", "killed"} {
		c.run(disks)
		c.progress(g, patience, 500)
		if how == "stopped" {
			d.down()
		} else {
			d.kill(append(d.members(""), "controller")...)
			if err := d.dev.Process.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-d.exited
		}
		if err := c.broken(g); err == nil {
			t.Fatalf("%s: no writer noticed", how)
		}
		closeAll(disks)
		d.up()
		g.untilActive() // by itself
		after, err := os.ReadFile(filepath.Join(d.dir, "openrc"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(credentials, after) {
			t.Errorf("%s: the credentials are other ones", how)
		}
		_, have, err := g.statuses()
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(have.PairIDs, have.PriorityStation, have.CreatedAt) != fmt.Sprint(before.PairIDs, before.PriorityStation, before.CreatedAt) {
			t.Errorf("%s: the group was %+v and is %+v", how, before, have)
		}
		disks = g.disks("az1")
		if err := c.inspect(d.ctx, disks); err != nil {
			t.Fatalf("%s: %v", how, err)
		}
	}
	c.run(disks)
	c.progress(g, patience, 500)
	flushAndCompare(g, c, disks)
}

func TestWritesGoOnWhileTheStoreIsDown(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	d.signal(syscall.SIGSTOP, "controller") // the store is embedded in it
	stopped := time.Now()
	c.Longest() // a new count begins
	for time.Since(stopped) < 12*time.Second {
		c.progress(g, 3*time.Second, 50)
	}
	if longest := c.Longest(); longest > 2*time.Second+stalls.slack(stopped) {
		t.Errorf("a write took %s while the store was down", longest)
	}
	d.signal(syscall.SIGCONT, "controller")
	g.untilActive()
	d.untilAlive(d.members("")...)
	flushAndCompare(g, c, disks)

	// The same for a process that serves one-sided under the policy available.
	d.kill(node("az2", 1))
	g.until(15*time.Second, "available", "inactive", "5")
	c.run(disks)
	c.progress(g, patience, 200)
	d.signal(syscall.SIGSTOP, "controller")
	for stopped = time.Now(); time.Since(stopped) < 5*time.Second; {
		c.progress(g, 3*time.Second, 50)
	}
	d.signal(syscall.SIGCONT, "controller")
	d.eventually(patience, "dev start works", func() error { _, _, err := g.statuses(); return err })
	d.start(node("az2", 1))
	g.untilActive()
	flushAndCompare(g, c, disks)
}

// TestTheAPISaysThatTheStoreIsDown: a second controller on the same store outlives it.
func TestTheAPISaysThatTheStoreIsDown(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1))
	url, err := os.ReadFile(filepath.Join(d.dir, "etcd", "client-url"))
	if err != nil {
		t.Fatal(err)
	}
	listen := freeAddr(t)
	config := filepath.Join(d.dir, "second.yaml")
	text := fmt.Sprintf("id: second\nlisten: %s\netcd_endpoints: [%q]\nadmin_password_file: %s\n", listen, strings.TrimSpace(string(url)), filepath.Join(d.dir, "admin-password"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(d.dir, "second.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(d.bin, "controller", "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := proc.Start(cmd); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		killer := time.AfterFunc(20*time.Second, func() { t.Error("the controller did not stop"); _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		killer.Stop()
	}()
	password, err := os.ReadFile(filepath.Join(d.dir, "admin-password"))
	if err != nil {
		t.Fatal(err)
	}
	var second *client.Client
	d.eventually(patience, "the second controller answers", func() error {
		second, err = client.DialWith(d.ctx, client.PasswordAuth("http://"+listen+"/identity/v3", "admin", strings.TrimSpace(string(password)), "Default", "admin"), client.AnyRegion, nil, "")
		return err
	})
	if _, err := second.Groups(d.ctx, client.Filter{}); err != nil {
		t.Fatal(err)
	}
	token := login(t, "http://"+listen+"/identity/v3", strings.TrimSpace(string(password)))
	d.signal(syscall.SIGSTOP, "controller")
	d.eventually(30*time.Second, "the API answers 503", func() error {
		_, err := second.CreateVolume(d.ctx, client.VolumeCreate{SizeGiB: 1, AvailabilityZone: "az1"})
		var refused *client.Error
		if errors.As(err, &refused) && refused.Status == 503 {
			return nil
		}
		return errors.Join(errors.New("it answers otherwise"), err)
	})
	d.kill(node("az1", 1)) // the very moment at which a failover is asked for
	status, header, err := act(d.ctx, second.Endpoint(), token, g.id, client.ActionFailover)
	if err != nil {
		t.Fatal(err)
	}
	if wait, err := strconv.Atoi(header.Get("Retry-After")); status != http.StatusServiceUnavailable || err != nil || wait < 1 {
		t.Errorf("a failover without the store is answered %d with Retry-After %q; want 503 and seconds", status, header.Get("Retry-After"))
	}
	d.signal(syscall.SIGCONT, "controller")
	d.eventually(30*time.Second, "the API answers again", func() error {
		_, err := second.Groups(d.ctx, client.Filter{})
		return err
	})
	// As a client does that was told to try again.
	d.eventually(patience, "the failover is taken", func() error {
		status, _, err := act(d.ctx, second.Endpoint(), token, g.id, client.ActionFailover)
		if err == nil && status != http.StatusAccepted && status != http.StatusConflict {
			err = fmt.Errorf("HTTP %d", status)
		}
		return err
	})
	g.until(patience, "failovered", "active-stopped", "0")
}

// login gives a token, by HTTP alone.
func login(t *testing.T, identity, password string) string {
	t.Helper()
	body := fmt.Sprintf(`{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"name":"Default"},"password":%q}}},"scope":{"project":{"name":"admin","domain":{"name":"Default"}}}}}`, password)
	status, header, err := post(t.Context(), identity+"/auth/tokens", "", body)
	if err != nil || status != http.StatusCreated {
		t.Fatalf("log in: HTTP %d, %v", status, err)
	}
	return header.Get("X-Subject-Token")
}

// act asks for an action by HTTP alone, to see the whole answer.
func act(ctx context.Context, endpoint, token, group string, a client.Action) (status int, header http.Header, err error) {
	return post(ctx, endpoint+"os-vendor-replication-consistency-groups/"+group+"/action", token, fmt.Sprintf(`{%q:{}}`, a))
}

func post(ctx context.Context, url, token, body string) (status int, header http.Header, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Auth-Token", token)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	_ = answer.Body.Close()
	return answer.StatusCode, answer.Header, nil
}
