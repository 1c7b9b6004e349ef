package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// parseHeaders returns the fields that values of --header-add ask for. A value is
//
//	Name: value
//	Name: @FILE    the value is what is in the file, without line breaks at its end
//	Name: @@value  the value begins with one @
//	@FILE          the file holds such lines; empty ones and those that begin with # are skipped
//
// so that a secret need not stand where everybody on the machine can read it. No error quotes a value. Whether names
// and values may be sent is left to the forwarder.
func parseHeaders(values []string) (http.Header, error) {
	fields := http.Header{}
	for _, value := range values {
		lines := []string{value}
		if path, ok := strings.CutPrefix(value, "@"); ok {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, headerError(err)
			}
			lines = strings.Split(string(data), "\n")
		}
		for _, line := range lines {
			line = strings.TrimSpace(line)
			if line == "" || len(lines) > 1 && line[0] == '#' {
				continue
			}
			name, text, err := parseHeader(line)
			if err != nil {
				return nil, headerError(err)
			}
			fields.Add(name, text)
		}
	}
	return fields, nil
}

func parseHeader(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" || strings.ContainsAny(name, " \t@") {
		return "", "", errors.New("not of the form NAME: VALUE")
	}
	value = strings.TrimSpace(value)
	path, fromFile := strings.CutPrefix(value, "@")
	switch {
	case !fromFile:
		return name, value, nil
	case strings.HasPrefix(path, "@"):
		return name, path, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", name, err)
	}
	return name, strings.TrimRight(string(data), "\r\n"), nil
}

func headerError(err error) error {
	return &cli.Error{
		Err:  fmt.Errorf("--header-add: %w", err),
		Hint: "write --header-add 'X-Name: value', or 'Authorization: @FILE' for a secret",
	}
}
