package main

import (
	"fmt"
	"io"
	"log/slog"
)

func logLevel(text string) (slog.Level, error) {
	switch text {
	case "debug", "info", "warn", "error":
		var l slog.Level
		err := l.UnmarshalText([]byte(text))
		return l, err
	}
	return 0, fmt.Errorf("%q is none of debug, info, warn, error", text)
}

// newLogger writes to w. The level is checked by the configuration's validation.
func newLogger(w io.Writer, level, format string) *slog.Logger {
	l, err := logLevel(level)
	if err != nil {
		l = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
