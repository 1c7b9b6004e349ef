package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// newCACommand returns the command that prints the root of --tls internal.
func newCACommand() *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "print the root certificate of --tls internal",
		Long: `harpd ca prints the root certificate, PEM, of the CA that --tls internal and harpd dev --https use,
and makes the CA if there is none yet. Whoever visits has to trust it. Without --data-dir, each user has
a CA of their own.`,
		Example: `  harpd ca > harp-root.pem
  curl --cacert harp-root.pem https://<label>.localhost:8443
  harp-agent up 3000 --server https://localhost:8443 --ca-file harp-root.pem`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			folder := filepath.Join(dataDir, "internal-ca")
			_, missing := os.Stat(filepath.Join(folder, "root.pem"))
			ca, err := openInternalCA(dataDir)
			if err != nil {
				return err
			}
			if errors.Is(missing, fs.ErrNotExist) {
				fmt.Fprintf(cmd.ErrOrStderr(), "made a new CA in %s\nhint: a harpd of another user, or with another --data-dir, has its own: run harpd ca as that user, with that --data-dir\n", folder)
			}
			_, err = cmd.OutOrStdout().Write(ca.RootPEM())
			return err
		},
	}
	cli.LocalFlags(cmd).String(&dataDir, "data-dir FOLDER", defaultDataDir(), "where the CA is kept")
	return cmd
}
