// Package cli is what the commands harpd and harp-agent share: flags that can also be set in the environment and in a
// file, help, errors that end in a hint, logging, and signals. Neither command calls os.Exit outside its main.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Main runs root with args (without the program's name) and returns the exit code. A setting that is not on the command
// line is read from the environment variable made of prefix and its name ("HARPD_" and max-body give HARPD_MAX_BODY),
// and then from the file that --config names. If the command fails, stderr gets one line with the error and, where one
// is known, a second with a hint; see Error.
//
// The first SIGINT or SIGTERM cancels the command's context, so that it can drain. The second has its ordinary effect:
// the process ends at once, and the shell reports 130 or 143.
func Main(root *cobra.Command, prefix string, args []string, stdout, stderr io.Writer) int {
	floor := make([]byte, heapFloor)
	defer runtime.KeepAlive(floor)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // gives the second signal its ordinary effect back

	prepare(root, prefix)
	root.SetArgs(append([]string{}, joinOptional(root, args)...)) // never nil: cobra would read os.Args
	root.SetOut(stdout)
	root.SetErr(stderr)
	return report(stderr, root.Name(), root.ExecuteContext(ctx))
}

// prepare gives root and every command below it our errors, our help and our way to read settings.
func prepare(root *cobra.Command, prefix string) {
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.SetGlobalNormalizationFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(dashed(name))
	})
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { writeHelp(cmd.OutOrStdout(), cmd, prefix) })
	root.SetHelpCommand(helpCommand())
	root.InitDefaultCompletionCmd()
	if completion := child(root, "completion"); completion != nil {
		completion.Short = "print a script that completes commands and flags in your shell"
		completion.Args = NoArgs
	}
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return load(cmd, prefix) }
	for cmd := range commands(root) {
		if cmd.Args == nil {
			cmd.Args = NoArgs
		}
		if cmd.HasSubCommands() && !cmd.Runnable() {
			// Without it cobra shows the help before it looks at the arguments, and takes a typing error for success.
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			cmd.Annotations = map[string]string{annotationGroupOnly: ""}
		}
	}
}

// NoArgs refuses arguments. For a command that has commands below it, the error speaks of an unknown command and the
// hint names the nearest known one.
func NoArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasSubCommands():
		return UnknownCommand(cmd, args[0])
	}
	return &Error{Err: fmt.Errorf("unexpected argument %q", args[0]), Hint: "see " + cmd.CommandPath() + " --help"}
}

// AtMostOne refuses more than one argument; what says what the one is.
func AtMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= 1 {
			return nil
		}
		return &Error{
			Err:  fmt.Errorf("unexpected argument %q after the %s %q", args[1], what, args[0]),
			Hint: "see " + cmd.CommandPath() + " --help",
		}
	}
}

// UnknownCommand returns the error for name, which is no command of cmd.
func UnknownCommand(cmd *cobra.Command, name string) error {
	var known []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			known = append(known, c.Name())
		}
	}
	hint := "see " + cmd.CommandPath() + " --help"
	if near, ok := nearest(name, known); ok {
		hint = cmd.CommandPath() + " " + near
	}
	return &Error{Err: fmt.Errorf("unknown command %q", name), Hint: hint}
}

// commands yields root and everything below it.
func commands(root *cobra.Command) func(yield func(*cobra.Command) bool) {
	return func(yield func(*cobra.Command) bool) { walk(root, yield) }
}

func walk(cmd *cobra.Command, yield func(*cobra.Command) bool) bool {
	if !yield(cmd) {
		return false
	}
	for _, c := range cmd.Commands() {
		if !walk(c, yield) {
			return false
		}
	}
	return true
}

// dashed returns name as flags are spelled: max_body is max-body.
func dashed(name string) string { return strings.ReplaceAll(name, "_", "-") }
