package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// VersionCommand returns the command that prints the program's name, its version, that of Go, and the system it was
// built for, on one line. If stamped, the version written in by the linker, is empty, it is what Go recorded.
func VersionCommand(stamped string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s %s/%s\n",
				cmd.Root().Name(), Version(stamped), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// Version returns stamped, else the module version that Go recorded at build time, else "unknown".
func Version(stamped string) string {
	if stamped != "" {
		return stamped
	}
	build, ok := debug.ReadBuildInfo()
	if !ok || build.Main.Version == "" {
		return "unknown"
	}
	return build.Main.Version
}
