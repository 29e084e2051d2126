package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxBodyBytes bounds the body of a request; a longer one is answered with 413.
const MaxBodyBytes = 1 << 20

// MaxNameBytes bounds names, descriptions, and keys and values of metadata; in bytes, not
// characters.
const MaxNameBytes = 255

// Object is a JSON object as it was sent, with typed readers. The first wrong field is kept and
// told by Err; readers after it return zero values. Members nobody reads are ignored.
type Object struct {
	path   string // how errors name it: "" for the body, "volume", "volume.metadata"
	keys   []string
	fields map[string]json.RawMessage
	err    *error // shared with the objects inside
}

// ReadObject reads a request's body, which must be one JSON object.
func ReadObject(r *Request) (*Object, error) {
	_, o, err := ReadBody(r)
	return o, err
}

// ReadBody is ReadObject, and gives the bytes as well.
func ReadBody(r *Request) (raw []byte, o *Object, err error) {
	raw, err = io.ReadAll(r.Body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, nil, &Error{
				Status:  http.StatusRequestEntityTooLarge,
				Message: fmt.Sprintf("the request body is larger than %d bytes", tooLarge.Limit),
			}
		}
		return nil, nil, BadRequest("the request body could not be read")
	}
	o, err = ParseObject(raw)
	return raw, o, err
}

// ParseObject reads bytes, which must be one JSON object and nothing else.
func ParseObject(raw []byte) (*Object, error) {
	if !utf8.Valid(raw) {
		return nil, BadRequest("malformed request body: it is not valid UTF-8")
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, BadRequest("the request body is empty; a JSON object is needed")
	}
	if !json.Valid(raw) {
		return nil, BadRequest("malformed request body: it is not valid JSON")
	}
	if half := loneSurrogate(raw); half != "" {
		return nil, BadRequest("malformed request body: %s is half of a character", half)
	}
	var first error
	o, err := parse("", raw, &first)
	if err != nil {
		return nil, err
	}
	return o, nil
}

// loneSurrogate finds an escape such as \ud800 that is no half of a pair, which the decoder would
// replace: what is answered later would not be what was sent. raw is valid JSON.
func loneSurrogate(raw []byte) string {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		i++ // the escaped character, of which a valid text has one
		if raw[i] != 'u' {
			continue
		}
		first := escaped(raw[i-1:])
		if !utf16.IsSurrogate(first) {
			continue
		}
		if utf16.DecodeRune(first, escaped(raw[min(i+5, len(raw)):])) == unicode.ReplacementChar {
			return string(raw[i-1 : i+5])
		}
		i += 10 // both halves
	}
	return ""
}

// escaped is the code unit of an escape \uXXXX at the beginning of raw; -1: there is none.
func escaped(raw []byte) rune {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' {
		return -1
	}
	n, err := strconv.ParseUint(string(raw[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(n)
}

// parse splits an object into its members. raw is valid JSON.
func parse(path string, raw json.RawMessage, shared *error) (*Object, error) {
	if t := typeOf(raw); t != "object" {
		if path == "" {
			return nil, BadRequest("malformed request body: it must be a JSON object, not %s", article(t))
		}
		return nil, BadRequest("%q must be an object, not %s", path, article(t))
	}
	o := &Object{path: path, fields: map[string]json.RawMessage{}, err: shared}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return nil, BadRequest("malformed request body: it is not valid JSON")
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, BadRequest("malformed request body: it is not valid JSON")
		}
		key, ok := tok.(string)
		if !ok {
			return nil, BadRequest("malformed request body: it is not valid JSON")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, BadRequest("malformed request body: it is not valid JSON")
		}
		if _, dup := o.fields[key]; dup {
			return nil, BadRequest("%q is given twice", o.name(key))
		}
		o.keys = append(o.keys, key)
		o.fields[key] = value
	}
	return o, nil
}

func typeOf(raw json.RawMessage) string {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return "nothing"
	}
	switch raw[0] {
	case '{':
		return "object"
	case '[':
		return "list"
	case '"':
		return "string"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	default:
		return "number"
	}
}

func article(t string) string {
	switch t {
	case "null", "nothing":
		return t
	case "object":
		return "an object"
	default:
		return "a " + t
	}
}

func (o *Object) name(key string) string {
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

// Err is the first wrong field that any reader of this object or one inside it met.
func (o *Object) Err() error { return *o.err }

// Fail keeps an error as the first one, unless there is one already.
func (o *Object) Fail(err error) {
	if *o.err == nil {
		*o.err = err
	}
}

// wrong keeps the error "key must be a want".
func (o *Object) wrong(key, want string) {
	o.Fail(BadRequest("%q must be %s, not %s", o.name(key), want, article(typeOf(o.fields[key]))))
}

// Keys are the members' names in the order sent.
func (o *Object) Keys() []string { return o.keys }

// Has reports whether the member is there, null included.
func (o *Object) Has(key string) bool { _, ok := o.fields[key]; return ok }

// Null reports whether the member is missing or null.
func (o *Object) Null(key string) bool {
	raw, ok := o.fields[key]
	return !ok || typeOf(raw) == "null"
}

// Type is "object", "list", "string", "boolean", "null", "number", or "nothing" for a member that
// is not there.
func (o *Object) Type(key string) string { return typeOf(o.fields[key]) }

// Only refuses every member that is not named.
func (o *Object) Only(keys ...string) {
	for _, have := range o.keys {
		known := false
		for _, k := range keys {
			known = known || k == have
		}
		if !known {
			o.Fail(BadRequest("%q is not known here", o.name(have)))
		}
	}
}

// Object reads a member that must be an object; null and missing are wrong. It never returns nil.
func (o *Object) Object(key string) *Object {
	if !o.Has(key) {
		o.Fail(BadRequest("%q is missing", o.name(key)))
		return o.empty(key)
	}
	in, err := parse(o.name(key), o.fields[key], o.err)
	if err != nil {
		o.Fail(err)
		return o.empty(key)
	}
	return in
}

// OptObject reads a member that is an object, null or missing; then the object is empty.
func (o *Object) OptObject(key string) *Object {
	if o.Null(key) {
		return o.empty(key)
	}
	return o.Object(key)
}

func (o *Object) empty(key string) *Object {
	return &Object{path: o.name(key), fields: map[string]json.RawMessage{}, err: o.err}
}

// Objects reads a member that must be a list of objects.
func (o *Object) Objects(key string) []*Object {
	var raws []json.RawMessage
	if !o.Has(key) {
		o.Fail(BadRequest("%q is missing", o.name(key)))
		return nil
	}
	if json.Unmarshal(o.fields[key], &raws) != nil || typeOf(o.fields[key]) != "list" {
		o.wrong(key, "a list of objects")
		return nil
	}
	out := make([]*Object, 0, len(raws))
	for i, raw := range raws {
		in, err := parse(fmt.Sprintf("%s[%d]", o.name(key), i), raw, o.err)
		if err != nil {
			o.Fail(err)
			return nil
		}
		out = append(out, in)
	}
	return out
}

// OptString reads a string; nil if it is null or missing.
func (o *Object) OptString(key string) *string {
	if o.Null(key) {
		return nil
	}
	if typeOf(o.fields[key]) != "string" {
		o.wrong(key, "a string")
		return nil
	}
	var s string
	if err := json.Unmarshal(o.fields[key], &s); err != nil {
		o.wrong(key, "a string")
		return nil
	}
	return &s
}

// String reads a string that must be there and not be empty.
func (o *Object) String(key string) string {
	s := o.OptString(key)
	if s == nil || *s == "" {
		o.Fail(BadRequest("%q is missing", o.name(key)))
		return ""
	}
	return *s
}

// Name reads an optional string of at most MaxNameBytes bytes, exactly as sent.
func (o *Object) Name(key string) *string {
	s := o.OptString(key)
	if s != nil && len(*s) > MaxNameBytes {
		o.Fail(BadRequest("%q has %d bytes; at most %d are allowed", o.name(key), len(*s), MaxNameBytes))
		return nil
	}
	return s
}

// Int reads a whole number that must be there.
func (o *Object) Int(key string) int64 {
	if o.Null(key) {
		o.Fail(BadRequest("%q is missing", o.name(key)))
		return 0
	}
	raw := string(bytes.TrimSpace(o.fields[key]))
	if typeOf(o.fields[key]) != "number" {
		o.wrong(key, "a whole number")
		return 0
	}
	n, err := strconv.ParseInt(raw, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		o.Fail(BadRequest("%q is out of range: %.40s", o.name(key), raw))
		return 0
	}
	if err != nil {
		o.Fail(BadRequest("%q must be a whole number, not %.40s", o.name(key), raw))
		return 0
	}
	return n
}

// maxGiB is the largest size whose bytes fit in an int64.
const maxGiB = math.MaxInt64 >> 30

// GiB reads a size in GiB: a whole number of at least 1 whose bytes fit in 64 bits.
func (o *Object) GiB(key string) int64 {
	before := o.Err()
	n := o.Int(key)
	switch {
	case before == nil && o.Err() != nil:
		var e *Error
		if errors.As(o.Err(), &e) {
			e.Code = "EVS.1010"
		}
	case o.Err() == nil && n < 1:
		o.Fail(BadRequestCode("EVS.1010", "%q must be at least 1 (GiB), not %d", o.name(key), n))
	case o.Err() == nil && n > maxGiB:
		o.Fail(BadRequestCode("EVS.1010", "%q is out of range: %d GiB", o.name(key), n))
	}
	return n
}

// Bool reads an optional boolean; missing and null are false.
func (o *Object) Bool(key string) bool {
	if o.Null(key) {
		return false
	}
	switch string(bytes.TrimSpace(o.fields[key])) {
	case "true":
		return true
	case "false":
		return false
	}
	o.wrong(key, "true or false")
	return false
}

// NeedBool reads a boolean that must be there.
func (o *Object) NeedBool(key string) bool {
	if o.Null(key) {
		o.Fail(BadRequest("%q is missing", o.name(key)))
		return false
	}
	return o.Bool(key)
}

// Strings reads an optional list of strings; nil if it is null or missing.
func (o *Object) Strings(key string) []string {
	if o.Null(key) {
		return nil
	}
	var raws []json.RawMessage
	if typeOf(o.fields[key]) != "list" || json.Unmarshal(o.fields[key], &raws) != nil {
		o.wrong(key, "a list of strings")
		return nil
	}
	out := make([]string, 0, len(raws))
	for i, raw := range raws {
		var s string
		if typeOf(raw) != "string" || json.Unmarshal(raw, &s) != nil {
			o.Fail(BadRequest("%q must be a string, not %s", fmt.Sprintf("%s[%d]", o.name(key), i), article(typeOf(raw))))
			return nil
		}
		out = append(out, s)
	}
	return out
}

// StringsOrCommas reads a list of strings, or one string with commas between them; both forms are
// trimmed.
func (o *Object) StringsOrCommas(key string) []string {
	if o.Null(key) {
		return nil
	}
	var out []string
	if typeOf(o.fields[key]) == "string" {
		out = strings.Split(*o.OptString(key), ",")
	} else if typeOf(o.fields[key]) == "list" {
		out = o.Strings(key)
	} else {
		o.wrong(key, "a list of strings, or one string with a comma between them")
	}
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}

// StringMap reads an optional object of strings, for metadata: keys of 1 to MaxNameBytes bytes,
// values of at most as many. nil if it is null or missing.
func (o *Object) StringMap(key string) map[string]string {
	if o.Null(key) {
		return nil
	}
	in := o.Object(key)
	out := make(map[string]string, len(in.keys))
	for _, k := range in.keys {
		if k == "" || len(k) > MaxNameBytes {
			o.Fail(BadRequest("a key of %q has %d bytes; 1 to %d are allowed", o.name(key), len(k), MaxNameBytes))
		}
		if in.Null(k) {
			in.wrong(k, "a string")
		}
		if s := in.Name(k); s != nil {
			out[k] = *s
		}
	}
	return out
}
