package disk

import (
	"bytes"
	"errors"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// FuzzPage feeds a page, sealed so that the fuzzer gets behind the checksum, to the decoders.
func FuzzPage(f *testing.F) {
	buf := make([]byte, pageBytes)
	putHeader(buf, "v", 5*lockstep.GiB)
	sealPage(buf, "v", 0, 7)
	f.Add(buf, uint16(0))
	f.Add([]byte{1, 2, 3}, uint16(66))
	f.Fuzz(func(t *testing.T, data []byte, page uint16) {
		buf := make([]byte, pageBytes)
		copy(buf, data)
		n := pageNo(page)
		if _, err := openPage(buf, "v", n); err != nil && !errors.Is(err, lockstep.ErrCorrupt) && !errors.Is(err, errNewVersion) {
			t.Fatalf("error of another class: %v", err)
		}
		le.PutUint32(buf[60:], pageSum(buf, "v"))
		if seq, err := openPage(buf, "v", n); err == nil && (seq != le.Uint64(buf[16:]) || buf[6] != n.kind()) {
			t.Fatal("a page of another kind was taken")
		}
		if size, err := getHeader(buf, "v"); err == nil && checkSize(size) != nil {
			t.Fatalf("size %d was taken", size)
		}
		if _, err := openPage(buf, "w", n); err == nil {
			t.Fatal("another volume's page was taken")
		}
	})
}

// FuzzMeta opens a volume whose metadata file has been overwritten at some place: it opens with no
// mark missing, or not at all.
func FuzzMeta(f *testing.F) {
	f.Add([]byte{0}, uint32(0), uint32(headerSlotB))
	f.Add(bytes.Repeat([]byte{0xff}, 9000), uint32(firstStripe), uint32(firstStripe+stripePages*pageBytes))
	f.Fuzz(func(t *testing.T, data []byte, at, also uint32) {
		if len(data) > 64<<10 {
			return
		}
		m := vfs.NewMem()
		p := openMem(t, m)
		v := create(t, p, "v", 64*mib)
		must(t, v.MarkIntent(20*mib, 1))
		must(t, v.AddDirty(exts(ext(20*mib, 1))))
		must(t, p.Close())
		file, err := m.OpenFile("x", "/pool/v.meta", 0)
		must(t, err)
		for _, off := range []uint32{at, also} {
			_, err = file.WriteAt(data, int64(off%(firstStripe+stripeBytes)))
			must(t, err)
		}
		p = openMem(t, m)
		if v, err = p.Open("v"); err != nil {
			if !errors.Is(err, lockstep.ErrCorrupt) && !errors.Is(err, errNewVersion) {
				t.Fatalf("error of another class: %v", err)
			}
			return
		}
		// Each promise is in one slot at least; a slot that the fuzzer left alone may be the older one,
		// made before the promise, only if it damaged the newer: that is one failure too many for it.
		if v.DamagedPages() > 0 && v.IntentBytes() == 0 && v.DirtyBytes() == 0 {
			t.Fatal("a damaged page counts as empty")
		}
	})
}

// FuzzUndo reads an undo file with hostile records behind a good header.
func FuzzUndo(f *testing.F) {
	const nonce = 42
	rec := appendRecord(nil, nonce, record{kind: recordHole, seq: 1, chunk: 3, chunks: 4}, nil)
	rec = appendRecord(rec, nonce, record{kind: recordData, seq: 2, chunk: 9, chunks: 1}, make([]byte, 512))
	f.Add(rec, true)
	f.Add(rec[:70], false)
	f.Fuzz(func(t *testing.T, data []byte, fix bool) {
		const chunks = 16
		file := append(make([]byte, undoHead), data...)
		if fix { // make every 64-byte piece that begins with the magic a record with a right checksum
			for i := undoHead; i+recordHead <= len(file); i += recordHead {
				if h := file[i : i+recordHead]; le.Uint32(h) == recordMagic {
					le.PutUint64(h[44:], nonce)
					le.PutUint32(h[60:], crc32.Checksum(h[:60], castagnoli))
				}
			}
		}
		log := undoLog{f: bytes.NewReader(file), size: int64(len(file)), nonce: nonce, chunks: chunks}
		tail, _, err := log.open(func(r record) {
			if r.chunk < 0 || r.chunks < 0 || r.chunk+r.chunks > chunks {
				t.Fatalf("record of chunks [%d,+%d)", r.chunk, r.chunks)
			}
		})
		if err != nil && !errors.Is(err, lockstep.ErrCorrupt) {
			t.Fatalf("error of another class: %v", err)
		}
		if tail < undoHead && err == nil || tail > int64(len(file)) {
			t.Fatalf("tail %d of %d", tail, len(file))
		}
		if h, err := decodeUndoHeader("v", file); err == nil {
			t.Fatalf("zeroes were taken for a header: %+v", h)
		}
		head := slices.Clone(data)
		if len(head) >= 64 {
			head = append(head, make([]byte, undoHead)...)
			le.PutUint32(head[60:], undoSum("v", head))
			if h, err := decodeUndoHeader("v", head); err == nil && checkSize(h.size) != nil {
				t.Fatalf("size %d was taken", h.size)
			}
		}
	})
}

func FuzzGroup(f *testing.F) {
	f.Add(encodeGroup("g", []byte("blob")))
	f.Add([]byte(groupMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		if blob, err := decodeGroup("g", data); err == nil && !bytes.Equal(encodeGroup("g", blob), data) &&
			(data[6] == 0 && data[7] == 0) {
			t.Fatal("a blob has two forms")
		}
		if len(data) < groupHead {
			return
		}
		fixed := slices.Clone(data)
		le.PutUint32(fixed[12:], groupSum("g", fixed))
		if blob, err := decodeGroup("g", fixed); err == nil && len(blob) != len(data)-groupHead {
			t.Fatalf("blob of %d bytes in %d", len(blob), len(data))
		}
	})
}

func FuzzNode(f *testing.F) {
	f.Add([]byte(`{"format":1,"instance_id":"x","start_counter":3,"crc32c":"00000000"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := decodeNode(data); err == nil && (n.Instance == "" || n.Check != n.sum()) {
			t.Fatalf("taken: %+v", n)
		}
	})
}
