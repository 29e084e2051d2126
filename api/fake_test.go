package api_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

// fakeService is a control.Service in memory whose changes are done at once: enough of the rules
// for the API's own behaviour to show, with ids and times that repeat.
type fakeService struct {
	declared []string
	mu       sync.Mutex
	n        int
	now      time.Time
	err      error // answers every call if set
	panics   bool
	volumes  map[lockstep.VolumeID]*store.Volume
	pairs    map[lockstep.PairID]*control.PairView
	groups   map[lockstep.GroupID]*control.GroupView
	acts     []string
	caller   control.Caller // of the last call
}

func newFake() *fakeService {
	return &fakeService{
		now:     time.Date(2017, 9, 28, 5, 8, 32, 839953000, time.UTC),
		volumes: map[lockstep.VolumeID]*store.Volume{},
		pairs:   map[lockstep.PairID]*control.PairView{},
		groups:  map[lockstep.GroupID]*control.GroupView{},
	}
}

func (f *fakeService) id() string {
	f.n++
	return fmt.Sprintf("00000000-0000-4000-8000-%012d", f.n)
}

func (f *fakeService) tick() time.Time {
	f.now = f.now.Add(time.Second)
	return f.now
}

func (f *fakeService) updated() *time.Time {
	t := f.tick()
	return &t
}

// enter is the first line of every call; the caller unlocks.
func (f *fakeService) enter(c control.Caller) error {
	f.mu.Lock()
	f.caller = c
	if f.panics {
		panic("the fake was told to")
	}
	return f.err
}

func refuse(k control.Kind, code, format string, args ...any) error {
	return &control.Error{Kind: k, Code: code, Message: fmt.Sprintf(format, args...)}
}

func (f *fakeService) volume(c control.Caller, id lockstep.VolumeID) (*store.Volume, error) {
	v := f.volumes[id]
	if v == nil || v.Project != c.Project {
		return nil, refuse(control.KindNotFound, "", "volume %s could not be found", id)
	}
	return v, nil
}

func (f *fakeService) view(v *store.Volume) control.VolumeView {
	out := control.VolumeView{Volume: *v, ReplicationStatus: "disabled"}
	if p := f.pairs[v.Pair]; p != nil {
		out.ReplicationStatus = p.ReplicationStatus
	}
	return out
}

func (f *fakeService) CreateVolume(_ context.Context, c control.Caller, r control.VolumeCreate) (control.VolumeView, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.VolumeView{}, err
	}
	if r.SizeGiB > 32768 {
		return control.VolumeView{}, refuse(control.KindBadRequest, "EVS.1010", "a volume has at most 32768 GiB")
	}
	if r.AZ == "" {
		r.AZ = "az1"
	}
	if r.AZ != "az1" && r.AZ != "az2" {
		return control.VolumeView{}, refuse(control.KindBadRequest, "", "there is no availability zone %s", r.AZ)
	}
	if r.Type == "" {
		r.Type = "ssd"
	}
	v := &store.Volume{
		ID: lockstep.VolumeID(f.id()), Project: c.Project, User: c.User, Name: r.Name, Description: r.Description,
		SizeBytes: r.SizeGiB * lockstep.GiB, Type: r.Type, AZ: r.AZ, Node: lockstep.NodeID("node-" + string(r.AZ)),
		Status: "available", Metadata: r.Metadata, Multiattach: r.Multiattach, CreatedAt: f.tick(),
	}
	f.volumes[v.ID] = v
	return f.view(v), nil
}

func (f *fakeService) GetVolume(_ context.Context, c control.Caller, id lockstep.VolumeID) (control.VolumeView, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.VolumeView{}, err
	}
	v, err := f.volume(c, id)
	if err != nil {
		return control.VolumeView{}, err
	}
	return f.view(v), nil
}

func (f *fakeService) EachVolume(_ context.Context, c control.Caller, w control.Walk, keep, fn func(control.VolumeView) bool) (bool, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return false, err
	}
	var out []control.VolumeView
	for _, v := range f.volumes {
		if v.Project == c.Project {
			out = append(out, f.view(v))
		}
	}
	return inOrder(out, w, func(x control.VolumeView) (time.Time, string) { return x.CreatedAt, string(x.ID) }, keep, fn), nil
}

func (f *fakeService) UpdateVolume(_ context.Context, c control.Caller, id lockstep.VolumeID, change func(*store.Volume) error) (control.VolumeView, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.VolumeView{}, err
	}
	v, err := f.volume(c, id)
	if err != nil {
		return control.VolumeView{}, err
	}
	n := *v
	if err := change(&n); err != nil {
		return control.VolumeView{}, err
	}
	n.UpdatedAt = f.updated()
	*v = n
	return f.view(v), nil
}

func (f *fakeService) ExtendVolume(_ context.Context, c control.Caller, id lockstep.VolumeID, size int64) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	v, err := f.volume(c, id)
	if err != nil {
		return err
	}
	if v.Pair != "" {
		return refuse(control.KindBadRequest, "", "volume %s is in pair %s", id, v.Pair)
	}
	if size*lockstep.GiB <= v.SizeBytes {
		return refuse(control.KindBadRequest, "EVS.1014", "volume %s cannot shrink", id)
	}
	v.SizeBytes, v.UpdatedAt = size*lockstep.GiB, f.updated()
	return nil
}

func (f *fakeService) DeleteVolume(_ context.Context, c control.Caller, id lockstep.VolumeID) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	v, err := f.volume(c, id)
	if err != nil {
		return err
	}
	if v.Pair != "" {
		return refuse(control.KindBadRequest, "", "volume %s is in pair %s", id, v.Pair)
	}
	delete(f.volumes, id)
	return nil
}

func (f *fakeService) ReleaseVolume(_ context.Context, c control.Caller, id lockstep.VolumeID) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	_, err := f.volume(c, id)
	if err == nil {
		f.acts = append(f.acts, "release "+string(id))
	}
	return err
}

func (f *fakeService) ConnectionURI(_ context.Context, c control.Caller, id lockstep.VolumeID) (string, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return "", err
	}
	_, err := f.volume(c, id)
	return "nbd+unix:///" + string(id) + "?socket=/run/lockstep/nbd.sock", err
}

func (f *fakeService) CreatePair(_ context.Context, c control.Caller, r control.PairCreate) (control.PairView, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.PairView{}, err
	}
	p := &control.PairView{Priority: r.Priority, ReplicationStatus: "inactive", FaultLevel: "0"}
	var vs [2]*store.Volume
	for i, id := range r.Volumes {
		v, err := f.volume(c, id)
		if err != nil {
			return control.PairView{}, refuse(control.KindNotFound, "37100048", "production volume %s does not exist", id)
		}
		if v.Pair != "" {
			return control.PairView{}, refuse(control.KindBadRequest, "37100053", "volume %s is in a pair", id)
		}
		vs[i] = v
		p.Volumes[i], p.AZs[i] = v.ID, v.AZ
	}
	if !slices.Contains(p.AZs[:], r.Priority) {
		return control.PairView{}, refuse(control.KindBadRequest, "", "priority_station %s is the zone of neither volume", r.Priority)
	}
	p.Pair.ID, p.Pair.Project, p.Pair.Name, p.Pair.Description = lockstep.PairID(f.id()), c.Project, r.Name, r.Description
	p.Pair.Primary, p.Pair.Model, p.Pair.Status, p.Pair.CreatedAt = r.Priority, r.Model, "available", f.tick()
	p.Pair.Meta = store.PairMeta{SizeGiB: vs[0].SizeBytes / lockstep.GiB, Type: vs[0].Type, Multiattach: vs[0].Multiattach}
	for _, v := range vs {
		v.Pair = p.Pair.ID
	}
	f.pairs[p.Pair.ID] = p
	return *p, nil
}

func (f *fakeService) pair(c control.Caller, id lockstep.PairID) (*control.PairView, error) {
	p := f.pairs[id]
	if p == nil || p.Project != c.Project {
		return nil, refuse(control.KindNotFound, "", "replication pair %s could not be found", id)
	}
	return p, nil
}

// joinable refuses a pair that cannot become a member of a group.
func (f *fakeService) joinable(c control.Caller, id lockstep.PairID) error {
	p, err := f.pair(c, id)
	if err == nil && p.Group != "" {
		err = refuse(control.KindBadRequest, "", "replication pair %s is already in consistency group %s", id, p.Group)
	}
	return err
}

func (f *fakeService) GetPair(_ context.Context, c control.Caller, id lockstep.PairID) (control.PairView, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.PairView{}, err
	}
	p, err := f.pair(c, id)
	if err != nil {
		return control.PairView{}, err
	}
	return *p, nil
}

func (f *fakeService) EachPair(_ context.Context, c control.Caller, w control.Walk, keep, fn func(control.PairView) bool) (bool, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return false, err
	}
	var out []control.PairView
	for _, p := range f.pairs {
		if p.Project == c.Project && (w.Group == "" || w.Group == p.Group) {
			out = append(out, *p)
		}
	}
	return inOrder(out, w, func(x control.PairView) (time.Time, string) { return x.CreatedAt, string(x.ID) }, keep, fn), nil
}

func (f *fakeService) DeletePair(_ context.Context, c control.Caller, id lockstep.PairID) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	p, err := f.pair(c, id)
	if err != nil {
		return err
	}
	if p.Group != "" {
		return refuse(control.KindConflict, "", "replication pair %s is in consistency group %s", id, p.Group)
	}
	for _, v := range p.Volumes {
		f.volumes[v].Pair = ""
	}
	delete(f.pairs, id)
	return nil
}

func (f *fakeService) group(c control.Caller, id lockstep.GroupID) (*control.GroupView, error) {
	g := f.groups[id]
	if g == nil || g.Project != c.Project {
		return nil, refuse(control.KindNotFound, "", "replication consistency group %s could not be found", id)
	}
	return g, nil
}

func (f *fakeService) CreateGroup(_ context.Context, c control.Caller, r control.GroupCreate) (control.GroupView, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.GroupView{}, err
	}
	g := &control.GroupView{Priority: r.Priority, Status: "available", ReplicationStatus: "inactive", FaultLevel: "0"}
	for _, id := range r.Pairs {
		if err := f.joinable(c, id); err != nil {
			return control.GroupView{}, err
		}
	}
	g.Group = store.Group{
		ID: lockstep.GroupID(f.id()), Project: c.Project, Name: r.Name, Description: r.Description,
		Pairs: r.Pairs, Model: r.Model, CreatedAt: f.tick(),
	}
	for _, id := range r.Pairs {
		f.pairs[id].Group = g.ID
	}
	f.groups[g.ID] = g
	return *g, nil
}

func (f *fakeService) GetGroup(_ context.Context, c control.Caller, id lockstep.GroupID) (control.GroupView, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.GroupView{}, err
	}
	g, err := f.group(c, id)
	if err != nil {
		return control.GroupView{}, err
	}
	return *g, nil
}

func (f *fakeService) EachGroup(_ context.Context, c control.Caller, w control.Walk, keep, fn func(control.GroupView) bool) (bool, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return false, err
	}
	var out []control.GroupView
	for _, g := range f.groups {
		if g.Project == c.Project && (w.Groups == nil || slices.Contains(w.Groups, g.ID)) {
			out = append(out, *g)
		}
	}
	return inOrder(out, w, func(x control.GroupView) (time.Time, string) { return x.CreatedAt, string(x.ID) }, keep, fn), nil
}

func (f *fakeService) UpdateGroup(_ context.Context, c control.Caller, id lockstep.GroupID, u control.GroupUpdate) (control.GroupView, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.GroupView{}, err
	}
	g, err := f.group(c, id)
	if err != nil {
		return control.GroupView{}, err
	}
	for _, p := range u.Remove {
		if !slices.Contains(g.Pairs, p) {
			return control.GroupView{}, refuse(control.KindBadRequest, "", "replication pair %s is not in consistency group %s", p, id)
		}
	}
	for _, p := range u.Add {
		if err := f.joinable(c, p); err != nil {
			return control.GroupView{}, err
		}
	}
	if u.SetName {
		g.Name = u.Name
	}
	if u.SetDesc {
		g.Description = u.Description
	}
	for _, p := range u.Add {
		f.pairs[p].Group = id
		g.Pairs = append(g.Pairs, p)
	}
	for _, p := range u.Remove {
		f.pairs[p].Group = ""
		g.Pairs = slices.DeleteFunc(slices.Clone(g.Pairs), func(q lockstep.PairID) bool { return q == p })
	}
	g.UpdatedAt = f.updated()
	out := *g
	out.Status = "updating"
	return out, nil
}

func (f *fakeService) DeleteGroup(_ context.Context, c control.Caller, id lockstep.GroupID) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	g, err := f.group(c, id)
	if err != nil {
		return err
	}
	if len(g.Pairs) > 0 {
		return refuse(control.KindConflict, "", "replication consistency group %s still has %d pairs", id, len(g.Pairs))
	}
	delete(f.groups, id)
	return nil
}

func (f *fakeService) Act(_ context.Context, c control.Caller, id lockstep.GroupID, a control.Action, ext []control.Extend) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	g, err := f.group(c, id)
	if err != nil {
		return err
	}
	line := string(a)
	for _, e := range ext {
		if !slices.Contains(g.Pairs, e.Pair) {
			return refuse(control.KindBadRequest, "", "replication pair %s is not in consistency group %s", e.Pair, id)
		}
		line += " " + string(e.Pair) + "=" + strconv.FormatInt(e.SizeGiB, 10)
	}
	switch a {
	case control.ActionSync:
		g.ReplicationStatus = "active"
	case control.ActionStop:
		g.ReplicationStatus = "active-stopped"
	case control.ActionFailover:
		if g.ReplicationStatus != "active" {
			return refuse(control.KindConflict, "", "failover refused: the secondary is not in sync: status %s, replication_status %s, fault_level %s",
				g.Status, g.ReplicationStatus, g.FaultLevel)
		}
		g.Status, g.ReplicationStatus, g.Priority = "failovered", "active-stopped", "az2"
	case control.ActionReprotect:
		g.Status, g.ReplicationStatus = "available", "active"
	case control.ActionReverse, control.ActionExtend:
	}
	f.acts = append(f.acts, line)
	return nil
}

func (f *fakeService) Declare(_ context.Context, c control.Caller, id lockstep.GroupID, s control.Statement, node lockstep.NodeID, reason string) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	if !c.Admin {
		return refuse(control.KindForbidden, "", "the statement %s needs the role admin", s)
	}
	if _, err := f.group(c, id); err != nil {
		return err
	}
	f.declared = append(f.declared, fmt.Sprintf("%s %s %q %q admin=%v", id, s, node, reason, c.Admin))
	return nil
}

func (f *fakeService) RecoverStore(_ context.Context, c control.Caller, off []lockstep.AZ, reason string) (control.Recovery, error) {
	f.declared = append(f.declared, fmt.Sprintf("recover %v %q admin=%v", off, reason, c.Admin))
	return control.Recovery{
		Groups:  []control.Recovered{{Group: "g", Was: 3, Epoch: 9, Primary: "az2", Unconfirmed: []string{"node n has not reported"}}},
		Unknown: []lockstep.GroupID{"u"},
	}, nil
}

func (f *fakeService) Explain(_ context.Context, c control.Caller, id lockstep.GroupID) (control.Explanation, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.Explanation{}, err
	}
	g, err := f.group(c, id)
	if err != nil {
		return control.Explanation{}, err
	}
	return control.Explanation{
		GroupView: *g, Condition: "in sync", Since: f.now, Secondary: "az2",
		Options: []control.Option{
			{Action: "failover", Allowed: true, Effect: "az2 becomes the primary"},
			{Action: "confirm-node-off", Node: "az1-node-1", Refusal: "only a trip or a failover waits for a primary node"},
		},
	}, nil
}

func (f *fakeService) SetStrict(_ context.Context, c control.Caller, id lockstep.GroupID, strict bool) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	if _, err := f.group(c, id); err != nil {
		return err
	}
	f.declared = append(f.declared, fmt.Sprintf("%s strict=%v", id, strict))
	return nil
}

func (f *fakeService) History(_ context.Context, c control.Caller, id lockstep.GroupID) ([]store.HistoryEntry, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return nil, err
	}
	if _, err := f.group(c, id); err != nil {
		return nil, err
	}
	return []store.HistoryEntry{{At: f.now, Group: id, Epoch: 7, What: "sync asked for", By: "admin", RequestID: "req-x"}}, nil
}

func (f *fakeService) PreviewFailover(_ context.Context, c control.Caller, id lockstep.GroupID) (control.FailoverPreview, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.FailoverPreview{}, err
	}
	if _, err := f.group(c, id); err != nil {
		return control.FailoverPreview{}, err
	}
	return control.FailoverPreview{
		Group: id, Epoch: 7, Allowed: true, Forced: true, From: "az1", To: "az2", Receipt: f.receipt(), Warnings: []string{"mind this"},
		Waits: []control.PrimaryWord{{Node: "n1"}}, Token: "7-1-ab", Expires: f.now,
	}, nil
}

func (f *fakeService) receipt() store.ForcedReceipt {
	return store.ForcedReceipt{PointAt: f.now, FlushOnly: []lockstep.NodeID{"n2"}, Volumes: []store.ForcedLoss{
		{Pair: "p", Volume: "v", Lost: "u", Image: control.ImagePoint, PointEpoch: 5, Bytes: 65536, AsOf: f.now, Estimate: true},
		{Pair: "q", Volume: "w", Lost: "x", Image: control.ImageNone, Bytes: -1},
	}}
}

func (f *fakeService) ForceFailover(_ context.Context, c control.Caller, id lockstep.GroupID, token string) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	if _, err := f.group(c, id); err != nil {
		return err
	}
	if token != "7-1-ab" {
		return refuse(control.KindConflict, "", "the token is another one; look at a new one")
	}
	f.declared = append(f.declared, fmt.Sprintf("%s force %s", id, token))
	return nil
}

func (f *fakeService) DivergenceImages(_ context.Context, c control.Caller, id lockstep.GroupID) ([]control.DivergenceImage, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return nil, err
	}
	if _, err := f.group(c, id); err != nil {
		return nil, err
	}
	return []control.DivergenceImage{{Epoch: 7, At: f.now, Volumes: []control.DivergedVolume{{Pair: "p", Volume: "u", Node: "n1", Export: "u@diverged-7", URI: "nbd://h/u@diverged-7"}}}}, nil
}

func (f *fakeService) DeleteDivergenceImage(_ context.Context, c control.Caller, id lockstep.GroupID, epoch lockstep.Epoch) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	if _, err := f.group(c, id); err != nil {
		return err
	}
	if epoch != 7 {
		return refuse(control.KindNotFound, "", "there is no divergence image %d", epoch)
	}
	f.declared = append(f.declared, fmt.Sprintf("%s drop %d", id, epoch))
	return nil
}

func (f *fakeService) LimitGroup(_ context.Context, c control.Caller, id lockstep.GroupID, mib int64) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	g, err := f.group(c, id)
	if err != nil {
		return err
	}
	g.ResyncLimitMiB = mib
	f.declared = append(f.declared, fmt.Sprintf("%s limit=%d", id, mib))
	return nil
}

func (f *fakeService) LimitNode(_ context.Context, c control.Caller, id lockstep.NodeID, mib int64) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	f.declared = append(f.declared, fmt.Sprintf("node %s limit=%d", id, mib))
	return nil
}

func (f *fakeService) Zones(context.Context) ([]control.Zone, error) {
	defer f.mu.Unlock()
	if err := f.enter(f.caller); err != nil {
		return nil, err
	}
	return []control.Zone{{Name: "az1", Available: true}, {Name: "az2"}}, nil
}

func (f *fakeService) Nodes(context.Context) ([]control.NodeView, error) {
	defer f.mu.Unlock()
	if err := f.enter(f.caller); err != nil {
		return nil, err
	}
	n := store.Node{ID: "node-az1", AZ: "az1", TotalBytes: 100, FreeBytes: 40, Version: "1"}
	m := store.Node{ID: "node-az2", AZ: "az2", TotalBytes: 100, FreeBytes: 50, Version: "1"}
	return []control.NodeView{{Node: n, Alive: true, Since: f.now}, {Node: m}}, nil
}

func (f *fakeService) Types() []control.VolumeType {
	return []control.VolumeType{{ID: "t1", Name: "ssd", Description: "fast", Default: true}, {ID: "t2", Name: "sas"}}
}

// inOrder keeps the contract of EachVolume, EachPair and EachGroup.
func inOrder[T any](all []T, w control.Walk, place func(T) (time.Time, string), keep, fn func(T) bool) (known bool) {
	slices.SortFunc(all, func(a, b T) int {
		atA, idA := place(a)
		atB, idB := place(b)
		return cmp.Or(atA.Compare(atB), cmp.Compare(idA, idB))
	})
	if !w.Oldest {
		slices.Reverse(all)
	}
	if w.After != "" {
		i := slices.IndexFunc(all, func(x T) bool { _, id := place(x); return id == w.After })
		if i < 0 {
			return false
		}
		all = all[i+1:]
	}
	for _, x := range all {
		if (keep == nil || keep(x)) && !fn(x) {
			break
		}
	}
	return true
}
