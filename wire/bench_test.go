package wire

import (
	"bytes"
	"testing"
)

// benchBytes is a client's usual write.
const benchBytes = 4096

func benchFrame() (Header, []byte) {
	body := bytes.Repeat([]byte{0x5a}, benchBytes)
	h := Header{Kind: KindWrite, Epoch: 7, Volume: 3, Seq: 9, Offset: 1 << 30, Length: benchBytes}
	h.BodyLen, h.BodyCRC = benchBytes, Checksum(body)
	return h, body
}

// BenchmarkPut is what a frame of 4 KiB costs its sender but for copying and sending the body: both checksums and the header.
func BenchmarkPut(b *testing.B) {
	h, body := benchFrame()
	var buf [HeaderSize]byte
	b.ReportAllocs()
	b.SetBytes(benchBytes)
	for b.Loop() {
		h.BodyCRC = Checksum(body)
		h.Put(buf[:])
	}
}

// BenchmarkReadHeader is what a frame of 4 KiB costs its receiver but for reading the body: the header and both checksums.
func BenchmarkReadHeader(b *testing.B) {
	h, body := benchFrame()
	var frame, scratch [HeaderSize]byte
	h.Put(frame[:])
	r := bytes.NewReader(frame[:])
	b.ReportAllocs()
	b.SetBytes(benchBytes)
	for b.Loop() {
		r.Reset(frame[:])
		got, err := ReadHeader(r, &scratch)
		if err != nil || got.BodyCRC != Checksum(body) {
			b.Fatal(got, err)
		}
	}
}

// TestFramesDoNotAllocate keeps the path of a write free of allocations.
func TestFramesDoNotAllocate(t *testing.T) {
	h, body := benchFrame()
	var frame, scratch [HeaderSize]byte
	r := bytes.NewReader(nil)
	allocs := testing.AllocsPerRun(100, func() {
		h.BodyCRC = Checksum(body)
		h.Put(frame[:])
		r.Reset(frame[:])
		if got, err := ReadHeader(r, &scratch); err != nil || got.BodyCRC != h.BodyCRC {
			t.Fatal(got, err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a frame", allocs)
	}
}
