package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
)

// maxImport is how much is read of a key on stdin, in bytes.
const maxImport = 64 << 10

func newKeygenCommand(shared *config) *cobra.Command {
	force, source := false, ""
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "make a key, or import one, and print its identity",
		Long: `harp-agent keygen writes a new key to the file of --key (mode 0600) and prints its identity and, if
the server is known, its URL. Whoever has the file has the URL: keep a copy, and keep it private.`,
		Example: "  harp-agent keygen\n  harp-agent keygen --import ~/.ssh/id_ed25519\n  harp-agent keygen --key /etc/harp/id.jwk",
		RunE: func(cmd *cobra.Command, _ []string) error {
			edge, err := shared.edge("")
			if err != nil {
				return err
			}
			if err := checkName(shared.Session, ""); err != nil {
				return err
			}
			key, err := newKey(source, cmd.InOrStdin())
			if errors.Is(err, fs.ErrNotExist) {
				return &cli.Error{Err: err, Hint: "check the path given with --import", Code: cli.CodeKey}
			}
			if err != nil {
				return cli.KeyError(err, source)
			}
			if err := identity.WriteKeyFile(shared.KeyFile, key, force); err != nil {
				return cli.KeyError(err, shared.KeyFile)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "the key is in %s\n", shared.KeyFile)
			return showIdentity(key, shared.Session, edge).print(cmd.OutOrStdout())
		},
	}
	f := cli.LocalFlags(cmd)
	f.Group("Key")
	f.Bool(&force, "force", false, "replace the key that is there; its URL is lost")
	f.String(&source, "import FILE", "", "take this Ed25519 key: OpenSSH, PKCS#8 or JWK; - is stdin")
	f.ArgOnly("force", "import")
	f.Group("Name")
	shared.declareName(f)
	return cmd
}

// newKey returns the key in source, from stdin if that is -, or a new one if it is empty.
func newKey(source string, stdin io.Reader) (identity.Key, error) {
	switch source {
	case "":
		return identity.Generate()
	case "-":
		data, err := io.ReadAll(io.LimitReader(stdin, maxImport))
		if err != nil {
			return identity.Key{}, fmt.Errorf("read stdin: %w", err)
		}
		return identity.ParseKey(data)
	}
	return identity.ReadKeyFile(source)
}
