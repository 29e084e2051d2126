package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// previewValid is how long the token of a preview can be used.
const previewValid = 10 * time.Minute

// Images that a volume may be failed over to.
const (
	ImagePoint   = "recovery-point" // of before a synchronization began to overwrite the volume
	ImageCurrent = "current"        // the volume as it is: nothing was overwritten since in sync
	ImageNone    = "none"           // there is no consistent one: the volume stays unserved
)

// FailoverPreview says what a failover of a group would do now, and lose.
type FailoverPreview struct {
	Group lockstep.GroupID
	Epoch lockstep.Epoch
	// Allowed: a failover is taken now, an ordinary one if not Forced. Reasons says why not.
	Allowed, Forced bool
	Reasons         []string
	From, To        lockstep.AZ
	Receipt         store.ForcedReceipt
	Warnings        []string
	Waits           []PrimaryWord // what a forced failover needs of the old primary's nodes
	// Token is quoted by the forced action; empty: it is not possible, or not needed.
	Token   string
	Expires time.Time
}

// PrimaryWord is what is known of a node of the old primary: it has to confirm that it stopped, or
// an operator that it is off.
type PrimaryWord struct {
	Node  lockstep.NodeID
	Alive bool
}

// Bytes is what all volumes together would miss; ok is false if that of one is not known.
func (p FailoverPreview) Bytes() (sum int64, ok bool) {
	ok = true
	for _, v := range p.Receipt.Volumes {
		if v.Bytes < 0 {
			ok = false
			continue
		}
		sum += v.Bytes
	}
	return sum, ok
}

// PreviewFailover answers what a failover would do now. It changes nothing.
func (c *Controller) PreviewFailover(ctx context.Context, caller Caller, id lockstep.GroupID) (FailoverPreview, error) {
	var p FailoverPreview
	err := c.update(ctx, nil, func(t *tx) error {
		x, err := t.look(caller, id)
		if err != nil {
			return err
		}
		if p, err = x.preview(); err != nil || !p.Allowed || !p.Forced {
			return err
		}
		p.Token, p.Expires = x.token(p, t.now.Unix()), t.now.Add(previewValid)
		return nil
	})
	return p, asRefusal(err)
}

// preview reads everything that a failover depends on, and that the user is to be told.
func (x *acting) preview() (FailoverPreview, error) {
	r := x.r
	p := FailoverPreview{Group: x.g.ID, Epoch: r.Epoch, From: r.Primary, To: r.Secondary, Forced: !r.InSync}
	if r.FailedOver { // named from the sides as they are: there is nothing to fail over to
		p.Forced = true
	}
	say := func(format string, args ...any) { p.Reasons = append(p.Reasons, fmt.Sprintf(format, args...)) }
	var old *Error
	if err := x.checkNotOlder(r); errors.As(err, &old) {
		say("%s", old.Message)
	} else if err != nil {
		return p, err
	}
	if _, err := verdict(ActionFailover, x.status); err != nil {
		say("%v", err)
	}
	next, err := r.Failover()
	if p.Forced {
		next, err = r.ForceFailover(r.Epoch, nil)
	}
	if err != nil {
		say("%v", err)
		next = r
	}
	if gone := x.gone(r.SecondaryNodes()); len(gone) > 0 {
		say("secondary node %s is not alive", joinIDs(gone))
	}
	seen, err := x.reports()
	if err != nil {
		return p, err
	}
	// What is only reported refuses nothing that loses nothing: an ordinary failover is begun, and the
	// nodes' answers end it.
	cannot := say
	if !p.Forced {
		cannot = func(format string, args ...any) {
			p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...)+": the failover would be taken back")
		}
	}
	for _, node := range r.SecondaryNodes() {
		n, found, err := get[store.Node](x.tx, store.KeyNode(node))
		if err != nil {
			return p, err
		}
		if want := r.Instances[node]; found && want != "" && n.Instance != want {
			cannot("node %s has another directory than the one of the last in-sync commit: it has no image", node)
		}
		if found && r.InSyncEpoch != 0 && n.BootID != r.BootIDs[node] {
			p.Receipt.FlushOnly = append(p.Receipt.FlushOnly, node)
		}
		if _, ok := seen[node]; !ok && p.Forced {
			say("secondary node %s has not reported what it has", node)
		}
	}
	for _, m := range r.Members {
		if why := appendFailed(nil, m.In(r.Secondary), sights(seen)); len(why) > 0 {
			cannot("%s", why[0])
		}
	}
	if r.StoppedAtMs != 0 {
		p.Receipt.PointAt = time.UnixMilli(r.StoppedAtMs).UTC()
	}
	if !p.Forced && len(p.Receipt.FlushOnly) > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("the host of node %s was restarted since the last in-sync commit: the failover would be taken back", joinIDs(p.Receipt.FlushOnly)))
	}
	if p.Forced && !r.FailedOver {
		p.Receipt.Volumes = x.losses(next, seen)
		p.Warnings = x.warnings(p)
	}
	for _, node := range r.PrimaryNodes() {
		p.Waits = append(p.Waits, PrimaryWord{Node: node, Alive: x.alive[node]})
	}
	p.Allowed = len(p.Reasons) == 0
	return p, nil
}

// reports reads what the group's nodes reported last; the transaction depends on it.
func (x *acting) reports() (map[lockstep.NodeID]store.GroupObserved, error) {
	seen := map[lockstep.NodeID]store.GroupObserved{}
	for _, node := range x.r.Nodes() {
		o, found, err := get[store.GroupObserved](x.tx, store.KeyObservedGroup(x.g.ID, node))
		if err != nil {
			return nil, err
		}
		if found {
			seen[node] = o
		}
	}
	return seen, nil
}

func sights(seen map[lockstep.NodeID]store.GroupObserved) map[lockstep.NodeID]Sight {
	out := map[lockstep.NodeID]Sight{}
	for node, o := range seen {
		out[node] = Sight{GroupObserved: o}
	}
	return out
}

// losses lists what each pair would miss: what its old primary reported last to differ. forced is
// the record that the failover would make.
func (x *acting) losses(forced protocol.Record, seen map[lockstep.NodeID]store.GroupObserved) []store.ForcedLoss {
	var out []store.ForcedLoss
	for _, m := range forced.Members {
		here, old := m.In(x.r.Secondary), m.In(x.r.Primary)
		l := store.ForcedLoss{Pair: m.Pair, Volume: here.Volume, Lost: old.Volume, Image: ImageCurrent, Bytes: -1, Estimate: true}
		if point := lockstep.Epoch(seen[here.Node].Volumes[here.Volume].PointEpoch); point > x.r.InSyncEpoch {
			l.Image, l.PointEpoch = ImagePoint, point
		}
		if m.NoImage {
			l.Image, l.PointEpoch = ImageNone, 0
		}
		if v, ok := seen[old.Node].Volumes[old.Volume]; ok {
			l.Bytes, l.AsOf = v.DirtyBytes, seen[old.Node].At
			if m.NoImage {
				l.Bytes = m.SizeBytes
			}
			if x.alive[old.Node] { // it reports what changes, within about a second
				l.AsOf = x.now
			}
		}
		out = append(out, l)
	}
	return out
}

// warnings are what the user should know beside the figures.
func (x *acting) warnings(p FailoverPreview) []string {
	var w []string
	if len(p.Receipt.FlushOnly) > 0 {
		w = append(w, fmt.Sprintf("the host of node %s was restarted since the last in-sync commit: its image is consistent only as of what was flushed, and may be no cut in the order of writes", joinIDs(p.Receipt.FlushOnly)))
	}
	for _, v := range p.Receipt.Volumes {
		if v.Image == ImageNone {
			w = append(w, fmt.Sprintf("pair %s was not in sync with the group: its volume %s has no consistent image and stays unserved", v.Pair, v.Volume))
		}
		if v.Bytes < 0 {
			w = append(w, fmt.Sprintf("what volume %s would miss is not known: the node of %s never reported", v.Volume, v.Lost))
		}
	}
	if p.Receipt.PointAt.IsZero() {
		w = append(w, "when replication stopped is not known")
	}
	for _, node := range x.r.PrimaryNodes() {
		switch {
		case x.alive[node]:
			w = append(w, fmt.Sprintf("primary node %s is alive: it is asked to stop, and what it acknowledges until then is lost as well", node))
		case !x.r.Strict:
			w = append(w, fmt.Sprintf("primary node %s is not alive: the failover ends when it confirms that it stopped, or an operator that it is off (confirm-node-off)", node))
		}
	}
	return w
}

// token binds a preview to what it was made of: the record as it is in the store, the images and the
// loss of each volume. It holds no secret: it keeps people from confirming what they were not told.
func (x *acting) token(p FailoverPreview, at int64) string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s %s %d %d", x.g.ID, x.r.Group, x.r.Epoch, x.raw[store.KeyRecord(x.g.ID)].ModRev)
	for _, v := range p.Receipt.Volumes {
		_, _ = fmt.Fprintf(h, "\n%s %s %s %d %d", v.Pair, v.Volume, v.Image, v.PointEpoch, v.Bytes)
	}
	_, _ = fmt.Fprintf(h, "\n%v %d %d", p.Receipt.FlushOnly, p.Receipt.PointAt.UnixMilli(), at) // a hash never fails
	return fmt.Sprintf("%d-%d-%s", x.r.Epoch, at, hex.EncodeToString(h.Sum(nil)[:16]))
}

// checkToken refuses a token that is not that of the preview as it would be now.
func (x *acting) checkToken(p FailoverPreview, token string) error {
	parts := strings.Split(token, "-")
	if len(parts) != 3 {
		return badRequest("", "token must be that of a failover-preview")
	}
	at, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return badRequest("", "token must be that of a failover-preview")
	}
	age := x.now.Sub(time.Unix(at, 0))
	switch {
	case parts[0] != formatEpoch(x.r.Epoch):
		return conflict("", "the group has changed since the preview: it was of epoch %s, now it is %d; look at a new one", parts[0], x.r.Epoch)
	case age > previewValid || age < -time.Minute:
		return conflict("", "the preview is older than %s; look at a new one", previewValid)
	case x.token(p, at) != token:
		return conflict("", "what would be lost, or what is failed over to, is not what the preview said any more; look at a new one")
	}
	return nil
}

// ForceFailover fails over to the last consistent image, although it lacks writes. token is that of a
// preview, of which everything must still be as it said.
func (c *Controller) ForceFailover(ctx context.Context, caller Caller, id lockstep.GroupID, token string) error {
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		x, err := t.begin(caller, id)
		if err != nil {
			return err
		}
		p, err := x.preview()
		if err != nil {
			return err
		}
		if !p.Allowed {
			return conflict("", "forced failover refused: %s", strings.Join(p.Reasons, "; "))
		}
		if !p.Forced {
			return conflict("", "the group is in sync: a failover without force loses nothing")
		}
		if err := x.checkToken(p, token); err != nil {
			return err
		}
		next, err := x.r.ForceFailover(x.r.Epoch, p.Receipt.FlushOnly)
		if err != nil {
			return err
		}
		// An extend gives up when it finds itself replaced.
		if op, found, err := get[store.Operation](x.tx, store.KeyOp(x.g.Op)); err != nil {
			return err
		} else if !found || op.Kind != opExtend {
			if err := x.takeOver(&x.g, x.r); err != nil {
				return err
			}
		}
		what := describeStep(x.r, next) + ": " + describeLoss(p.Receipt)
		x.startMove(opFailover, next)
		x.receipt(next, what, caller.who(), caller.RequestID, p.Receipt)
		return nil
	}))
}

// receipt is history with what a forced failover loses.
func (t *tx) receipt(r protocol.Record, what, by, request string, loss store.ForcedReceipt) {
	t.history(r, what, by, request)
	t.put(keyHistoryEpoch(r.Group, r.Epoch), store.HistoryEntry{
		At: t.now, Group: r.Group, Epoch: r.Epoch, What: what, By: by, RequestID: request, Receipt: &loss,
		Condition: condition(r),
	})
}

// describeLoss is a receipt in words.
func describeLoss(l store.ForcedReceipt) string {
	var sum int64
	unknown, none := 0, 0
	for _, v := range l.Volumes {
		switch {
		case v.Image == ImageNone:
			none++
		case v.Bytes < 0:
			unknown++
		default:
			sum += v.Bytes
		}
	}
	s := fmt.Sprintf("%d bytes missing", sum)
	if !l.Final {
		s += ", by the old primary's last report"
	}
	if unknown > 0 {
		s += fmt.Sprintf(", those of %d volumes not known", unknown)
	}
	if none > 0 {
		s += fmt.Sprintf(", %d volumes without an image", none)
	}
	if !l.PointAt.IsZero() {
		s += ", of writes after " + l.PointAt.Format(time.RFC3339Nano)
	}
	if len(l.FlushOnly) > 0 {
		s += ", consistent only as of what node " + joinIDs(l.FlushOnly) + " had flushed"
	}
	return s
}

// endReceipt writes the end of a forced failover with its receipt: figures of old primary nodes that
// reported after they had stopped are final.
func (t *tx) endReceipt(r, next protocol.Record) error {
	asked, found, err := get[store.HistoryEntry](t, keyHistoryEpoch(r.Group, r.Epoch))
	if err != nil || !found || asked.Receipt == nil || !next.FailedOver {
		return err
	}
	loss := *asked.Receipt
	loss.Final = true
	for i, v := range loss.Volumes {
		var m protocol.Member
		for _, o := range r.Members {
			if o.Pair == v.Pair {
				m = o
			}
		}
		o, found, err := peek[store.GroupObserved](t, store.KeyObservedGroup(r.Group, m.In(r.Primary).Node))
		if err != nil {
			return err
		}
		now, ok := o.Volumes[v.Lost]
		if !found || !ok || o.Epoch < r.Epoch {
			loss.Final = false
			continue
		}
		if v.Image != ImageNone {
			loss.Volumes[i].Bytes = now.DirtyBytes
		}
		loss.Volumes[i].AsOf, loss.Volumes[i].Estimate = o.At, false
	}
	t.receipt(next, describeStep(r, next)+": "+describeLoss(loss), byController, asked.RequestID, loss)
	return nil
}
