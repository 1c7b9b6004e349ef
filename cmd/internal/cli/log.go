package cli

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

var (
	logLevels  = []string{"debug", "info", "warn", "error"}
	logFormats = []string{"text", "json"}
)

// NewLogger returns a logger that writes to w what is at least at level (debug, info, warn or error; anything else
// means info), as JSON if format is json, else as text: key=value lines, or on a terminal a short form for people.
func NewLogger(w io.Writer, level, format string) *slog.Logger {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		least = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: least}
	switch {
	case format == "json":
		return slog.New(slog.NewJSONHandler(w, opts))
	case isTerminal(w):
		return slog.New(newTerminalHandler(w, least))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// A terminalHandler writes "15:04:05 message key=value", with the level in front of the message unless it is info.
type terminalHandler struct {
	attrs slog.Handler // writes the attributes of a record into line.buf
	line  *terminalLine
}

// A terminalLine is shared by all handlers made from one.
type terminalLine struct {
	mu  sync.Mutex // guards buf and writes to w
	buf bytes.Buffer
	w   io.Writer
}

func newTerminalHandler(w io.Writer, least slog.Level) *terminalHandler {
	line := &terminalLine{w: w}
	attrs := slog.NewTextHandler(&line.buf, &slog.HandlerOptions{Level: least, ReplaceAttr: withoutBuiltins})
	return &terminalHandler{attrs: attrs, line: line}
}

// withoutBuiltins drops the level and the empty message; the handler has already left the zero time out.
func withoutBuiltins(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	_, isLevel := a.Value.Any().(slog.Level)
	if (a.Key == slog.LevelKey && isLevel) || (a.Key == slog.MessageKey && a.Value.String() == "") {
		return slog.Attr{}
	}
	return a
}

// Enabled reports whether records at level are written.
func (h *terminalHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.attrs.Enabled(ctx, level)
}

// Handle writes one line with one Write.
func (h *terminalHandler) Handle(ctx context.Context, r slog.Record) error {
	when, message := r.Time, r.Message
	r.Time, r.Message = time.Time{}, ""

	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	h.line.buf.Reset()
	if err := h.attrs.Handle(ctx, r); err != nil {
		return err
	}
	var out strings.Builder
	out.WriteString(when.Format(time.TimeOnly))
	if r.Level != slog.LevelInfo {
		out.WriteString(" " + r.Level.String())
	}
	out.WriteString(" " + oneLine(message))
	if attrs := strings.TrimSpace(h.line.buf.String()); attrs != "" {
		out.WriteString("  " + attrs)
	}
	out.WriteByte('\n')
	_, err := io.WriteString(h.line.w, out.String())
	return err
}

// WithAttrs returns a handler that adds attrs to every record.
func (h *terminalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &terminalHandler{attrs: h.attrs.WithAttrs(attrs), line: h.line}
}

// WithGroup returns a handler that puts later attributes into the group name.
func (h *terminalHandler) WithGroup(name string) slog.Handler {
	return &terminalHandler{attrs: h.attrs.WithGroup(name), line: h.line}
}
