package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A scalar is the pflag.Value of a setting that has one value.
type scalar[T any] struct {
	p      *T
	kind   string // what Type returns
	parse  func(string) (T, error)
	format func(T) string
	fits   func(string) bool // nil unless the flag may stand alone: whether the argument after it is its value
}

// Set parses s; on an error the setting keeps its value.
func (v *scalar[T]) Set(s string) error {
	x, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.p = x
	return nil
}

// String returns the value as it could be typed.
func (v *scalar[T]) String() string { return v.format(*v.p) }

// Type names the kind of value; pflag knows "bool".
func (v *scalar[T]) Type() string { return v.kind }

// A list is the pflag.Value of a setting that has any number of values.
type list[T any] struct {
	p         *[]T
	parse     func(string) (T, error)
	format    func(T) string
	separator string // between values in one text: a comma, or a line break
	given     bool   // the values are not the declared ones any more
}

// Set adds the values in s; the first call drops the declared ones.
func (v *list[T]) Set(s string) error { return v.setAll(strings.Split(s, v.separator)) }

// setAll adds the values in texts; the first call drops the declared ones. Empty texts are skipped.
func (v *list[T]) setAll(texts []string) error {
	var added []T
	for _, s := range texts {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		x, err := v.parse(s)
		if err != nil {
			return err
		}
		added = append(added, x)
	}
	if !v.given {
		*v.p, v.given = nil, true
	}
	*v.p = append(*v.p, added...)
	return nil
}

// String returns the values as they could be typed.
func (v *list[T]) String() string {
	texts := make([]string, len(*v.p))
	for i, x := range *v.p {
		texts[i] = v.format(x)
	}
	return strings.Join(texts, v.separator)
}

// Type names the kind of value; for one that is called a slice, completion offers the flag again.
func (v *list[T]) Type() string { return "stringSlice" }

func formatAny[T any](x T) string { return fmt.Sprint(x) }

func parseText(s string) (string, error) { return s, nil }

func formatText(s string) string { return s }

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "yes", "on", "1":
		return true, nil
	case "false", "no", "off", "0":
		return false, nil
	}
	return false, &Error{Err: errors.New("neither true nor false"), Hint: "write true or false"}
}

func parseInt(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, &Error{Err: errors.New("not a whole number"), Hint: "write digits only, such as 1000"}
	}
	return n, nil
}

func parseFloat(s string) (float64, error) {
	x, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
		return 0, &Error{Err: errors.New("not a number"), Hint: "write a number, such as 100 or 0.5"}
	}
	return x, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, &Error{Err: errors.New("not a span of time"), Hint: "write a number with its unit: 500ms, 30s, 5m or 1h30m"}
	}
	return d, nil
}

func oneOf(choices []string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, c := range choices {
			if strings.EqualFold(s, c) {
				return c, nil
			}
		}
		hint := "write " + alternatives(choices)
		if near, ok := nearest(s, choices); ok {
			hint = fmt.Sprintf("did you mean %s? %s", near, hint)
		}
		return "", &Error{Err: fmt.Errorf("not one of %s", strings.Join(choices, ", ")), Hint: hint}
	}
}

// alternatives returns words as a sentence would: "a, b or c".
func alternatives(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
