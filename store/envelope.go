package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"sync"

	"github.com/lockstep-dr/lockstep"
)

func wrapInvalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// envelope is how every value stands in the store: {"v":1,"d":{...}}. v is the format version of
// the kind of record, d the record itself.
type envelope struct {
	V int             `json:"v"`
	D json.RawMessage `json:"d"`
}

// format is what this program knows of one kind of record.
type format struct {
	version int
	upgrade func(from int, d json.RawMessage) (json.RawMessage, error)
}

var (
	formatsMu sync.RWMutex // guards formats
	formats   = map[reflect.Type]format{}
)

// RegisterFormat states the format version in which this program writes records of type T. A
// type that was never registered has version 1. A record of an older version goes through
// upgrade, which is given its version and data and returns the data as of version; a record of a
// newer one is ErrNewerFormat. Any change of a record's fields, an added field too, makes a new
// version: an older program would drop the field when it writes the record back.
//
// It is called from init functions. It panics when T is registered twice, version is below 1, or
// version is above 1 without an upgrade.
func RegisterFormat[T any](version int, upgrade func(from int, d json.RawMessage) (json.RawMessage, error)) {
	t := recordType(reflect.TypeFor[T]())
	if version < 1 || version > 1 && upgrade == nil {
		panic(fmt.Sprintf("store: format %d of %v needs a positive version and a way to upgrade", version, t))
	}
	formatsMu.Lock()
	defer formatsMu.Unlock()
	if _, twice := formats[t]; twice {
		panic(fmt.Sprintf("store: format of %v registered twice", t))
	}
	formats[t] = format{version: version, upgrade: upgrade}
}

// recordType makes *T and T the same kind of record.
func recordType(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

func formatOf(t reflect.Type) format {
	formatsMu.RLock()
	defer formatsMu.RUnlock()
	if f, ok := formats[recordType(t)]; ok {
		return f
	}
	return format{version: 1}
}

// Encode gives the stored form of a record. It panics if v cannot be written as JSON, which only
// a mistake in the record's type can cause.
func Encode[T any](v T) []byte {
	b, err := encodeAny(v)
	if err != nil {
		panic(fmt.Sprintf("store: %v", err))
	}
	return b
}

func encodeAny(v any) ([]byte, error) {
	if v == nil {
		return nil, wrapInvalid("encode nil")
	}
	d, err := json.Marshal(v)
	if err != nil {
		return nil, wrapInvalid("encode %T: %v", v, err)
	}
	b, err := json.Marshal(envelope{V: formatOf(reflect.TypeOf(v)).version, D: d})
	if err != nil {
		return nil, wrapInvalid("encode %T: %v", v, err)
	}
	return b, nil
}

// Decode reads the stored form of a record. A newer version, or a field this program does not
// know, is ErrNewerFormat; anything that is not a record is lockstep.ErrCorrupt.
func Decode[T any](b []byte) (T, error) {
	if d, ok := plainData(b, formatOf(reflect.TypeFor[T]()).version); ok {
		var v T
		if strict(d, &v) == nil {
			return v, nil
		}
	}
	return decodeAny[T](b)
}

// decodeAny is Decode of whatever it may be.
func decodeAny[T any](b []byte) (T, error) {
	var v T
	var e envelope
	if err := strict(b, &e); err != nil {
		return v, fmt.Errorf("decode %T: %w: %w", v, lockstep.ErrCorrupt, err)
	}
	if e.V < 1 || len(e.D) == 0 {
		return v, fmt.Errorf("decode %T: %w: no version or no data", v, lockstep.ErrCorrupt)
	}
	f := formatOf(reflect.TypeFor[T]())
	if e.V > f.version {
		return v, fmt.Errorf("decode %T: version %d, known up to %d: %w", v, e.V, f.version, ErrNewerFormat)
	}
	d := e.D
	if e.V < f.version {
		var err error
		if d, err = f.upgrade(e.V, d); err != nil {
			return v, fmt.Errorf("upgrade %T from version %d to %d: %w: %w", v, e.V, f.version, lockstep.ErrCorrupt, err)
		}
	}
	strictErr := strict(d, &v)
	if strictErr == nil {
		return v, nil
	}
	// The decoder has no type for "unknown field": if the data is a record but for fields that
	// this program lacks, somebody newer wrote it without raising the version.
	var zero, loose T
	if json.Unmarshal(d, &loose) == nil {
		return zero, fmt.Errorf("decode %T: %w: %w", v, ErrNewerFormat, strictErr)
	}
	return zero, fmt.Errorf("decode %T: %w: %w", v, lockstep.ErrCorrupt, strictErr)
}

// plainData is the data of an envelope of that version as encodeAny writes it, without a look at the data
// itself: if that turns out to be exactly one value, b was exactly this envelope. It spares reading every value
// of a large store twice.
func plainData(b []byte, version int) (json.RawMessage, bool) {
	start := append(strconv.AppendInt(append(make([]byte, 0, 32), `{"v":`...), int64(version), 10), `,"d":`...)
	if len(b) <= len(start)+1 || !bytes.HasPrefix(b, start) || b[len(b)-1] != '}' {
		return nil, false
	}
	return b[len(start) : len(b)-1], true
}

// strict decodes exactly one JSON value and refuses fields that v does not have.
func strict(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if rest := bytes.TrimSpace(b[dec.InputOffset():]); len(rest) > 0 {
		return fmt.Errorf("%d bytes after the value", len(rest))
	}
	return nil
}
