package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

const module = "github.com/harp-tunnel/harp"

// programs returns the folder that holds harpd and harp-agent: bin, or if that is empty one below dir for which they
// are built as a release is.
func programs(ctx context.Context, bin, dir string, log io.Writer) (string, error) {
	if bin == "" {
		bin = filepath.Join(dir, "bin")
		fmt.Fprintln(log, "building harpd and harp-agent")
		return bin, build(ctx, bin)
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return "", err
	}
	for _, name := range []string{"harpd", "harp-agent"} {
		if _, err := exec.LookPath(filepath.Join(bin, name)); err != nil {
			return "", &cli.Error{Err: fmt.Errorf("--bin: %w", err), Hint: "make build makes both, in bin"}
		}
	}
	return bin, nil
}

func build(ctx context.Context, bin string) error {
	// Git tells nothing to a user who does not own the checkout, and go then does not build.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", bin+string(filepath.Separator),
		module+"/cmd/harpd", module+"/cmd/harp-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it removes its files
	cmd.WaitDelay = patience
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	return &cli.Error{
		Err:  fmt.Errorf("build harpd and harp-agent: %w: %s", err, gist(string(out))),
		Hint: "run it inside the checkout of HARP, or give the folder of the programs: harp-bench --bin FOLDER",
	}
}

// gist is the first and the last line of what go printed, without those that say what it was doing.
func gist(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "go: downloading ") {
			lines = append(lines, line)
		}
	}
	switch len(lines) {
	case 0:
		return "it said nothing"
	case 1:
		return lines[0]
	}
	return lines[0] + " ... " + lines[len(lines)-1]
}
