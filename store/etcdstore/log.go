package etcdstore

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// notNews are warnings of etcd about what is intended here: one loopback port for everything, no
// etcd users; and about requests that were refused, which their callers learn anyway.
var notNews = []string{
	"Running http and grpc server on single port. This is not recommended for production.",
	"simple token is not cryptographically signed",
	"failed to apply request",
}

// zapToSlog makes a zap logger, which is what etcd wants, that writes to log from level on, except
// notNews and, below fatal, whatever comes while mute is set.
func zapToSlog(log *slog.Logger, level zapcore.Level, mute *atomic.Bool) *zap.Logger {
	return zap.New(&slogCore{log: log.With("component", "etcd"), level: level, mute: mute})
}

type slogCore struct {
	log    *slog.Logger
	level  zapcore.Level
	mute   *atomic.Bool // may be nil
	fields []zapcore.Field
}

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= c.level }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	d := *c
	d.fields = slices.Concat(c.fields, fields)
	return &d
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	muted := c.mute != nil && c.mute.Load() && e.Level < zapcore.DPanicLevel
	if c.Enabled(e.Level) && !muted && !slices.Contains(notNews, e.Message) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	all := slices.Concat(c.fields, fields)
	attrs := make([]slog.Attr, 0, len(all))
	for _, f := range all {
		if _, twice := enc.Fields[f.Key]; twice {
			continue
		}
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			attrs = append(attrs, slog.Any(f.Key, v))
		}
	}
	level := slog.LevelError
	switch {
	case e.Level <= zapcore.DebugLevel:
		level = slog.LevelDebug
	case e.Level == zapcore.InfoLevel:
		level = slog.LevelInfo
	case e.Level == zapcore.WarnLevel:
		level = slog.LevelWarn
	}
	c.log.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}

func (c *slogCore) Sync() error { return nil }
