package cli

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// CodeUsage is the exit code for a wrong flag, argument or setting.
const CodeUsage = 1

// An Error ends a command. Main prints it as one line, and its hint as a second.
type Error struct {
	Err  error
	Hint string // what to type next; empty if nothing is known to help
	Code int    // exit code; zero means CodeUsage
}

// Error returns the message without the hint.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns what went wrong.
func (e *Error) Unwrap() error { return e.Err }

// report prints err for a person and returns the exit code: 0 for nil, 1 for an error that is not an *Error.
func report(stderr io.Writer, program string, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "%s: %s\n", program, oneLine(err.Error()))
	code, hint := CodeUsage, ""
	if e, ok := errors.AsType[*Error](err); ok {
		hint = e.Hint
		if e.Code != 0 {
			code = e.Code
		}
	}
	if hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", oneLine(hint))
	}
	return code
}

// oneLine returns s without line breaks and with control characters escaped: a message can quote what a remote server
// said, and that must not steer the terminal.
func oneLine(s string) string {
	fields := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	for i, f := range fields {
		fields[i] = strings.TrimSpace(f)
	}
	s = strings.Join(fields, "; ")
	if strings.IndexFunc(s, unprintable) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unprintable(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// flagError turns what pflag reports about the command line of cmd into an *Error.
func flagError(cmd *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		return unknownFlag(cmd, e)
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return badValue("--"+e.GetFlag().Name, e.GetValue(), e.Unwrap())
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return &Error{
			Err:  fmt.Errorf("--%s needs a value", e.GetFlag().Name),
			Hint: fmt.Sprintf("%s --%s %s", cmd.CommandPath(), e.GetFlag().Name, valueWord(e.GetFlag())),
		}
	}
	return &Error{Err: err, Hint: "see " + cmd.CommandPath() + " --help"}
}

func unknownFlag(cmd *cobra.Command, e *pflag.NotExistError) error {
	name, typed := e.GetSpecifiedName(), "--"+e.GetSpecifiedName()
	if group := e.GetSpecifiedShortnames(); group != "" { // -domain: one dash, as Go's own flag package has it
		name, typed = group, "-"+group
	}
	name, _, _ = strings.Cut(dashed(name), "=")
	if name == "version" {
		return &Error{Err: fmt.Errorf("unknown flag %s", typed), Hint: cmd.Root().Name() + " version"}
	}
	var known []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			known = append(known, f.Name)
		}
	})
	hint := "see " + cmd.CommandPath() + " --help"
	if near, ok := nearest(name, known); ok {
		hint = fmt.Sprintf("did you mean --%s? %s", near, hint)
	}
	return &Error{Err: fmt.Errorf("unknown flag %s", typed), Hint: hint}
}

// badValue returns the error for a setting that does not parse; where is the flag, the environment variable, or the key
// and file it stands in.
func badValue(where, value string, cause error) error {
	hint := ""
	if e, ok := errors.AsType[*Error](cause); ok {
		hint = e.Hint
	}
	return &Error{Err: fmt.Errorf("%s %q: %w", where, value, cause), Hint: hint}
}
