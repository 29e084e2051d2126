package store

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// Goal: the short way to read a value gives what the long one gives, for anything that may stand in the store.
// Method: envelopes with bytes changed, left out and put in, and some made by hand.
func TestDecodeHasOneMeaning(t *testing.T) {
	check := func(b []byte) (good bool) {
		got, err := Decode[Volume](b)
		want, wantErr := decodeAny[Volume](b)
		if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() || !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: %+v, %v; want %+v, %v", b, got, err, want, wantErr)
		}
		return err == nil
	}
	for _, b := range []string{
		``, `{`, `{}`, `{"v":1}`, `{"v":1,"d":}`, `{"v":1,"d":null}`, `{"v":1,"d":{}}`, `{"v":1,"d":{} }`, `{"v":1,"d":{}} `, ` {"v":1,"d":{}}`, `{"v":1,"d":{}}}`,
		`{"v":2,"d":{}}`, `{"v":01,"d":{}}`, `{"v":10,"d":{}}`, `{"v":1,"d":{},"d":{"id":"x"}}`, `{"v":1,"d":{},"v":2}`, `{"v":1,"d":{},"x":1}`, `{"d":{},"v":1}`,
		`{"v":1,"d":{"id":"x"},{"id":"y"}}`, `{"v":1,"d":{"no such field":1}}`, `{"v":1,"d":[]}`, `{"v":1,"d":{"id":"}"}}`, `{"v":1,"d":{"id":"\u007d"}}`,
	} {
		check([]byte(b))
	}
	name := `a "name" with }, and {`
	whole := Encode(Volume{ID: "v1", Project: "p", Name: &name, SizeBytes: 1 << 30, Metadata: map[string]string{"k": "v"}, CreatedAt: time.Unix(1, 0).UTC()})
	if !check(whole) {
		t.Fatal("what was encoded cannot be read")
	}
	random := rand.New(rand.NewPCG(3, 0))
	const letters = `{}[]",:\0129dv x`
	read := 0
	for range 20000 {
		b := append([]byte(nil), whole...)
		for range 1 + random.IntN(3) {
			i, c := random.IntN(len(b)), letters[random.IntN(len(letters))]
			switch random.IntN(3) {
			case 0:
				b[i] = c
			case 1:
				b = append(b[:i], b[i+1:]...)
			case 2:
				b = append(b[:i], append([]byte{c}, b[i:]...)...)
			}
		}
		if check(b) {
			read++
		}
	}
	if read == 0 || read == 20000 {
		t.Errorf("%d of 20000 could be read: the changes are of no use", read)
	}
}

func BenchmarkDecode(b *testing.B) {
	name := "disk-12345678"
	whole := Encode(Volume{ID: "01234567-89ab-4cde-8f01-23456789abcd", Project: "0123456789abcdef0123456789abcdef", Name: &name, SizeBytes: 1 << 30, CreatedAt: time.Unix(1, 0).UTC()})
	for name, f := range map[string]func([]byte) (Volume, error){"short": Decode[Volume], "long": decodeAny[Volume]} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f(whole); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
