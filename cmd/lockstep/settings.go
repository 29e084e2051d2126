package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/pflag"
)

// settings layers a daemon's configuration: flag over LOCKSTEP_* over file over default. The
// struct's yaml keys are the only list of settings: the key etcd_dir is the flag --etcd-dir and
// the variable LOCKSTEP_ETCD_DIR.
type settings struct {
	target any               // pointer to the configuration struct, holding the defaults
	help   map[string]string // by yaml key; a test keeps it complete
	file   string            // of --config
	env    func(string) (string, bool)

	flags   *pflag.FlagSet
	origins map[string]string
}

// setting is one key of a configuration with where its value came from.
type setting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin string `json:"origin"`
}

const maxConfigBytes = 1 << 20

var durationType = reflect.TypeFor[time.Duration]()

// newSettings binds a flag for every key of target's struct to flags.
func newSettings(target any, help map[string]string, flags *pflag.FlagSet) *settings {
	s := &settings{target: target, help: help, flags: flags, env: os.LookupEnv}
	flags.StringVar(&s.file, "config", "", "YAML file with the settings; flags and LOCKSTEP_* variables go before it")
	s.each(func(key string, v reflect.Value) {
		name, text := flagName(key), help[key]
		switch {
		case v.Type() == durationType:
			flags.Duration(name, time.Duration(v.Int()), text)
		case v.Kind() == reflect.String:
			flags.String(name, v.String(), text)
		case v.Kind() == reflect.Bool:
			flags.Bool(name, v.Bool(), text)
		case v.Kind() == reflect.Int64:
			flags.Int64(name, v.Int(), text)
		case v.Kind() == reflect.Slice:
			flags.StringSlice(name, stringsOf(v), text)
		default:
			panic("settings: no flag for the type of " + key) // a programming error, met by every test
		}
	})
	return s
}

func flagName(key string) string { return strings.ReplaceAll(key, "_", "-") }
func envName(key string) string  { return "LOCKSTEP_" + strings.ToUpper(key) }

// each visits the fields that have a yaml key, in the order of the struct.
func (s *settings) each(visit func(key string, v reflect.Value)) {
	eachField(reflect.ValueOf(s.target).Elem(), visit)
}

func eachField(v reflect.Value, visit func(key string, v reflect.Value)) {
	for i := range v.NumField() {
		key, option, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case option == "inline":
			eachField(v.Field(i), visit)
		case key != "" && key != "-":
			visit(key, v.Field(i))
		}
	}
}

// load fills the target in. Every error names the key and where its value came from.
func (s *settings) load() error {
	s.origins = map[string]string{}
	s.each(func(key string, _ reflect.Value) { s.origins[key] = "default" })
	if s.file != "" {
		if err := s.loadFile(); err != nil {
			return err
		}
	}
	var errs []error
	s.each(func(key string, v reflect.Value) {
		if text, ok := s.env(envName(key)); ok {
			if err := assign(v, text); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", envName(key), err))
			}
			s.origins[key] = "environment " + envName(key)
		}
		if f := s.flags.Lookup(flagName(key)); f != nil && f.Changed {
			text := f.Value.String()
			if list, ok := f.Value.(pflag.SliceValue); ok {
				text = strings.Join(list.GetSlice(), ",")
			}
			if err := assign(v, text); err != nil {
				errs = append(errs, fmt.Errorf("--%s: %w", flagName(key), err))
			}
			s.origins[key] = "flag --" + flagName(key)
		}
	})
	return errors.Join(errs...)
}

func (s *settings) loadFile() error {
	f, err := os.Open(s.file)
	if err != nil {
		return fmt.Errorf("open the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if len(data) > maxConfigBytes {
		return fmt.Errorf("configuration %s has more than %d bytes", s.file, maxConfigBytes)
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		return nil
	}
	var present map[string]any
	if err := yaml.Unmarshal(data, &present); err != nil {
		return fmt.Errorf("configuration %s: %w", s.file, err)
	}
	if err := s.checkDurations(present); err != nil {
		return fmt.Errorf("configuration %s: %w", s.file, err)
	}
	if err := yaml.UnmarshalWithOptions(data, s.target, yaml.Strict()); err != nil {
		return fmt.Errorf("configuration %s: %w", s.file, err)
	}
	for key := range present {
		s.origins[key] = "file " + s.file
	}
	return nil
}

// checkDurations names the key of a wrong duration; the decoder does not, and takes a bare number
// for nanoseconds.
func (s *settings) checkDurations(present map[string]any) error {
	var errs []error
	s.each(func(key string, v reflect.Value) {
		value, ok := present[key]
		if !ok || v.Type() != durationType {
			return
		}
		text, isText := value.(string)
		if _, err := time.ParseDuration(text); !isText || err != nil {
			errs = append(errs, fmt.Errorf("%s: %v is no duration such as 500ms or 3s", key, value))
		}
	})
	return errors.Join(errs...)
}

func assign(v reflect.Value, text string) error {
	switch {
	case v.Type() == durationType:
		d, err := time.ParseDuration(text)
		if err != nil {
			return err
		}
		v.SetInt(int64(d))
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(b)
	case v.Kind() == reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is no number", text)
		}
		v.SetInt(n)
	case v.Kind() == reflect.Slice:
		list := reflect.MakeSlice(v.Type(), 0, 4)
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				e := reflect.New(v.Type().Elem()).Elem()
				e.SetString(item)
				list = reflect.Append(list, e)
			}
		}
		v.Set(list)
	default:
		return fmt.Errorf("no setting can have type %s", v.Type())
	}
	return nil
}

func stringsOf(v reflect.Value) []string {
	list := make([]string, v.Len())
	for i := range list {
		list[i] = v.Index(i).String()
	}
	return list
}

// list is the effective configuration after load, in the order of the struct.
func (s *settings) list() []setting {
	var all []setting
	s.each(func(key string, v reflect.Value) {
		value := v.Interface()
		if d, ok := value.(time.Duration); ok {
			value = d.String()
		}
		all = append(all, setting{key, value, s.origins[key]})
	})
	return all
}
