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
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return "", &cli.Error{Err: fmt.Errorf("--bin: %w", err), Hint: "make build makes both, in bin"}
		}
	}
	return bin, nil
}

func build(ctx context.Context, bin string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", bin+string(filepath.Separator),
		module+"/cmd/harpd", module+"/cmd/harp-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	words, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return &cli.Error{
		Err:  fmt.Errorf("build harpd and harp-agent: %w: %s", err, words),
		Hint: "run it inside the checkout of HARP, or give the folder of the programs: harp-bench --bin FOLDER",
	}
}
