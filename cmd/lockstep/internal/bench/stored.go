package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// storedRun is a controller on a store that holds so many pairs.
type storedRun struct {
	Pairs   int     `json:"pairs"`
	Keys    int     `json:"keys"`
	Fill    float64 `json:"fill_s"`
	StoreMB float64 `json:"store_mib"` // resident, of the store's process
	// Ready is from the controller's start until it answers a page of the largest list; Driven from its
	// start until it has ended the creation of a pair that was asked for then.
	Ready   float64      `json:"ready_s"`
	Driven  float64      `json:"driven_s"`
	StartUp cost         `json:"after_start"` // when that was done
	Peak    float64      `json:"peak_mib"`    // the controller's largest resident size until then
	Settled cost         `json:"settled"`     // after all requests
	Calls   []callSpread `json:"calls"`
}

// callSpread is how long calls of one kind took, in milliseconds.
type callSpread struct {
	What  string `json:"what"`
	Calls int    `json:"calls"`
	spread
}

// account is a user who is logged in to a project.
type account struct {
	user, password, project string
	base, token             string
	c                       *client.Client
}

// storedPairs fills stores and starts controllers on them.
func storedPairs(ctx context.Context, o options, g *growth) error {
	for _, size := range split(o.pairs) {
		n, err := strconv.Atoi(size)
		if err != nil {
			return err
		}
		run, err := storedOf(ctx, o, n)
		if err != nil {
			return fmt.Errorf("%d pairs: %w", n, err)
		}
		g.Stored = append(g.Stored, *run)
	}
	return nil
}

func storedOf(ctx context.Context, o options, pairs int) (run *storedRun, err error) {
	dir := filepath.Join(o.dir, fmt.Sprintf("stored-%d", pairs))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	member, err := startStore(ctx, filepath.Join(dir, "store"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, member.stop()) }()
	many := &account{user: "admin", password: "many-of-them", project: "admin"}
	few := &account{user: "few", password: "some-of-them", project: "few"}
	run = &storedRun{Pairs: pairs}
	f, err := fillFor(ctx, member.url, pairs, o.seed, many, few, run)
	if err != nil {
		return nil, err
	}
	stored, err := processCost(member.pid())
	if err != nil {
		return nil, err
	}
	run.StoreMB = stored.RSSMiB
	fmt.Printf("%d pairs are %d keys, written in %.0f s\n", pairs, run.Keys, run.Fill)
	ctl, err := startController(ctx, o, dir, member.url, many.password)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ctl.stop()) }()
	if err := ctl.started(ctx, many, f, run); err != nil {
		return nil, err
	}
	if err := few.login(ctx, ctl.addr); err != nil {
		return nil, err
	}
	for _, job := range storedJobs(many, few, f) {
		c, err := job.measure(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", job.what, err)
		}
		run.Calls = append(run.Calls, c)
		fmt.Printf("%7d pairs, %-44s %4d calls, median %9.2f ms, p99 %9.2f ms\n", pairs, c.What, c.Calls, c.P50, c.P99)
	}
	run.Settled, err = ctl.cost(ctx)
	return run, err
}

// fillFor makes the accounts and the records.
func fillFor(ctx context.Context, endpoint string, pairs int, seed uint64, many, few *account, run *storedRun) (f *filled, err error) {
	st, err := etcdstore.Open(ctx, etcdstore.Config{Endpoints: []string{endpoint}, RequestTimeout: 30 * time.Second})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	boot, err := identity.Bootstrap(ctx, st, identity.BootstrapConfig{Project: many.project, User: many.user, Password: many.password})
	if err != nil {
		return nil, err
	}
	users, err := identity.New(identity.Config{Store: st, Region: storedRegion})
	if err != nil {
		return nil, err
	}
	p, err := users.CreateProject(ctx, boot.DomainID, few.project)
	if err != nil {
		return nil, err
	}
	u, err := users.CreateUser(ctx, boot.DomainID, few.user, few.password)
	if err != nil {
		return nil, err
	}
	if err := users.Assign(ctx, identity.Assignment{User: u.ID, Project: p.ID, Roles: []string{identity.RoleMember}}); err != nil {
		return nil, err
	}
	began := time.Now()
	f, err = fillStore(ctx, st, pairs, lockstep.ProjectID(boot.ProjectID), lockstep.ProjectID(p.ID), seed)
	if err == nil {
		run.Fill, run.Keys = time.Since(began).Seconds(), f.keys
	}
	return f, err
}

const storedRegion = "region-1"

// controllerProcess is a controller without nodes of its own.
type controllerProcess struct {
	addr  string
	cmd   *exec.Cmd
	began time.Time
	ended chan struct{}
}

func startController(ctx context.Context, o options, dir, endpoint, password string) (*controllerProcess, error) {
	addr, err := dev.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	secret := filepath.Join(dir, "password")
	if err := os.WriteFile(secret, []byte(password+"\n"), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.out, "controller.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the child has its own
	cmd := exec.Command(o.lockstep, "controller", "--listen", addr, "--region", storedRegion, "--etcd-endpoints", endpoint,
		"--admin-password-file", secret, "--azs", zones[0].AZ+","+zones[1].AZ)
	cmd.Stderr = log
	c := &controllerProcess{addr: addr, cmd: cmd, began: time.Now(), ended: make(chan struct{})}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	go func() { _ = runBound(cmd, c.ended, out, func(string) bool { return false }) }() // its readiness is asked for
	return c, ctx.Err()
}

func (c *controllerProcess) stop() error { return endBound(c.cmd, c.ended) }

func (c *controllerProcess) cost(ctx context.Context) (cost, error) {
	x, err := processCost(c.cmd.Process.Pid)
	if err != nil {
		return x, err
	}
	return x, x.fromMetrics(ctx, c.addr)
}

// started waits until the controller answers, and until it has done something.
func (c *controllerProcess) started(ctx context.Context, a *account, f *filled, run *storedRun) error {
	err := untilEvery(ctx, 50*time.Millisecond, "the controller answers", func(ctx context.Context) (bool, error) {
		select {
		case <-c.ended:
			return false, errors.New("it ended")
		default:
			return a.login(ctx, c.addr) == nil, nil
		}
	})
	if err != nil {
		return err
	}
	err = untilEvery(ctx, 50*time.Millisecond, "the first list", func(ctx context.Context) (bool, error) {
		return a.get(ctx, pairsPath+"?limit=1000") == nil, nil
	})
	if err != nil {
		return err
	}
	run.Ready = time.Since(c.began).Seconds()
	if _, err := f.pairUp(ctx, a); err != nil {
		return err
	}
	run.Driven = time.Since(c.began).Seconds()
	if run.StartUp, err = c.cost(ctx); err != nil {
		return err
	}
	peak, _, _ := strings.Cut(field(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid), "VmHWM"), " ")
	kib, err := strconv.Atoi(peak)
	run.Peak = float64(kib) / 1024
	return err
}

// login gets a token, and a client for what needs no measurement.
func (a *account) login(ctx context.Context, addr string) error {
	id := "http://" + addr + "/identity/v3"
	c, err := client.DialWith(ctx, client.PasswordAuth(id, a.user, a.password, "Default", a.project), client.AnyRegion, nil, "lockstep-bench")
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"password"}, "password": map[string]any{"user": map[string]any{
			"name": a.user, "password": a.password, "domain": map[string]any{"name": "Default"},
		}}},
		"scope": map[string]any{"project": map[string]any{"name": a.project, "domain": map[string]any{"name": "Default"}}},
	}})
	if err != nil {
		return err
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, id+"/auth/tokens", bytes.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		return err
	}
	_ = answer.Body.Close() // the token is in the header
	if answer.StatusCode != http.StatusCreated {
		return fmt.Errorf("log in: %s", answer.Status)
	}
	a.c, a.base, a.token = c, c.Endpoint(), answer.Header.Get("X-Subject-Token")
	return nil
}

const (
	pairsPath   = "os-vendor-replications"
	groupsPath  = "os-vendor-replication-consistency-groups"
	volumesPath = "volumes"
)

// get reads a whole answer.
func (a *account) get(ctx context.Context, path string) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return err
	}
	q.Header.Set("X-Auth-Token", a.token)
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }() // it was read, or is of no use
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
		return fmt.Errorf("%s: %s: %s", path, answer.Status, text)
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// pairUp makes a pair of two free volumes and waits until it is available.
func (f *filled) pairUp(ctx context.Context, a *account) (client.Pair, error) {
	p, err := f.createPair(ctx, a)
	if err != nil {
		return p, err
	}
	return p, untilEvery(ctx, time.Millisecond, "pair is available", func(ctx context.Context) (bool, error) {
		p, err = a.c.Pair(ctx, p.ID)
		return p.Status == "available", err
	})
}

func (f *filled) createPair(ctx context.Context, a *account) (client.Pair, error) {
	if len(f.free[0]) == 0 || len(f.free[1]) == 0 {
		return client.Pair{}, errors.New("no free volume is left")
	}
	ids := []string{string(f.free[0][0]), string(f.free[1][0])}
	f.free[0], f.free[1] = f.free[0][1:], f.free[1][1:]
	return a.c.CreatePair(ctx, client.PairCreate{VolumeIDs: ids, PriorityStation: zones[0].AZ})
}

// storedJob is a call that is made again and again.
type storedJob struct {
	what  string
	times int
	call  func(ctx context.Context, i int) error
}

const jobTime = 15 * time.Second // after which no further call is made

func (j storedJob) measure(ctx context.Context) (callSpread, error) {
	var took []float64
	for began := time.Now(); len(took) < j.times && (len(took) < 3 || time.Since(began) < jobTime); {
		at := time.Now()
		if err := j.call(ctx, len(took)); err != nil {
			return callSpread{}, err
		}
		took = append(took, float64(time.Since(at).Microseconds())/1000)
	}
	return callSpread{What: j.what, Calls: len(took), spread: spreadOf(took)}, nil
}

func storedJobs(many, few *account, f *filled) []storedJob {
	get := func(what string, times int, a *account, path func(i int) string) storedJob {
		return storedJob{what, times, func(ctx context.Context, i int) error { return a.get(ctx, path(i)) }}
	}
	always := func(path string) func(int) string { return func(int) string { return path } }
	mine := f.pairs[f.many]
	some := func(n int) func(int) int { return func(i int) int { return i * 7919 % n } }
	one, group := some(len(mine)), some(len(f.groups[f.many]))
	deep := string(mine[len(mine)/10])
	var made []string
	return []storedJob{
		get("list of pairs, first page of 1000", 50, many, always(pairsPath+"?limit=1000")),
		get("list of pairs, first page of 10", 100, many, always(pairsPath+"?limit=10")),
		get("list of pairs, page of 1000 at nine tenths", 50, many, always(pairsPath+"?limit=1000&marker="+deep)),
		get("list of pairs, those of a group", 50, many, func(i int) string {
			return pairsPath + "?replication_consistency_group_id=" + url.QueryEscape(string(f.groups[f.many][group(i)]))
		}),
		get("list of pairs, a status that none has", 50, many, always(pairsPath+"?status=error")),
		get("list of pairs, by name, page of 1000", 20, many, always(pairsPath+"?limit=1000&sort_key=name")),
		get("list of pairs, who owns few", 100, few, always(pairsPath)),
		get("list of groups, first page of 1000", 50, many, always(groupsPath+"?limit=1000")),
		get("list of groups, that of a volume", 50, many, func(i int) string {
			return groupsPath + "?volume_id=" + string(f.volumes[f.many][one(i)])
		}),
		get("list of groups, who owns few", 100, few, always(groupsPath)),
		get("list of volumes, first page of 1000", 50, many, always(volumesPath+"/detail?limit=1000")),
		get("list of volumes, who owns few", 100, few, always(volumesPath+"/detail")),
		get("show pair", 300, many, func(i int) string { return pairsPath + "/" + string(mine[one(i)]) }),
		get("show group", 300, many, func(i int) string { return groupsPath + "/" + string(f.groups[f.many][group(i)]) }),
		{"create volume", 100, func(ctx context.Context, _ int) error {
			_, err := many.c.CreateVolume(ctx, client.VolumeCreate{SizeGiB: 1, AvailabilityZone: zones[0].AZ})
			return err
		}},
		{"create pair", 100, func(ctx context.Context, _ int) error {
			p, err := f.createPair(ctx, many)
			made = append(made, p.ID)
			return err
		}},
		{"create pair, until it is available", 100, func(ctx context.Context, _ int) error {
			_, err := f.pairUp(ctx, many)
			return err
		}},
		{"create group", 90, func(ctx context.Context, i int) error {
			_, err := many.c.CreateGroup(ctx, client.GroupCreate{PairIDs: []string{made[i]}, PriorityStation: zones[0].AZ})
			return err
		}},
		{"failover", 100, func(ctx context.Context, i int) error {
			return many.c.Act(ctx, string(f.groups[f.many][i]), client.ActionFailover)
		}},
	}
}

func printStored(runs []storedRun) {
	if len(runs) == 0 {
		return
	}
	head := []any{"pairs in the store"}
	for _, r := range runs {
		head = append(head, r.Pairs)
	}
	t := newTable("a controller on a large store", head...)
	row := func(what string, get func(storedRun) string) {
		cells := table.Row{what}
		for _, r := range runs {
			cells = append(cells, get(r))
		}
		t.AppendRow(cells)
	}
	number := func(format string, get func(storedRun) float64) func(storedRun) string {
		return func(r storedRun) string { return fmt.Sprintf(format, get(r)) }
	}
	row("keys", func(r storedRun) string { return strconv.Itoa(r.Keys) })
	row("start to first list, s", number("%.1f", func(r storedRun) float64 { return r.Ready }))
	row("start to first thing done, s", number("%.1f", func(r storedRun) float64 { return r.Driven }))
	row("processor time until then, s", number("%.1f", func(r storedRun) float64 { return r.StartUp.CPUSeconds }))
	row("largest resident size until then, MiB", number("%.0f", func(r storedRun) float64 { return r.Peak }))
	row("resident at the end, MiB", number("%.0f", func(r storedRun) float64 { return r.Settled.RSSMiB }))
	row("heap at the end, MiB", number("%.0f", func(r storedRun) float64 { return r.Settled.HeapMiB }))
	row("the store's process, MiB", number("%.0f", func(r storedRun) float64 { return r.StoreMB }))
	for i := range runs[0].Calls {
		row(runs[0].Calls[i].What+", ms (p99)", func(r storedRun) string {
			return fmt.Sprintf("%.2f (%.2f)", r.Calls[i].P50, r.Calls[i].P99)
		})
	}
	fmt.Println()
	t.Render()
}
