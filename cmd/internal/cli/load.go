package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// configFlag names the flag with the path of the configuration file.
const configFlag = "config"

// load fills in every setting of cmd that the command line left alone: from the environment, else from the file. A flag
// that gets a value here counts as Changed afterwards. An environment variable that is set but empty counts as unset,
// and one that no setting has is ignored: Kubernetes invents some.
func load(cmd *cobra.Command, prefix string) error {
	if !declares(cmd) {
		return nil
	}
	path := cmd.Flag(configFlag)
	if path == nil {
		return errors.New("cli: BUG: no General flags declared")
	}
	if v := os.Getenv(envName(prefix, configFlag)); v != "" && !path.Changed {
		path.Value.Set(v) // a plain text: cannot fail
	}
	known := settings(cmd.Root())
	k := koanf.New(".")
	if err := loadFile(k, path.Value.String(), known); err != nil {
		return err
	}
	environment := env.Provider("", env.Opt{Prefix: prefix, TransformFunc: func(name, value string) (string, any) {
		name = dashed(strings.ToLower(strings.TrimPrefix(name, prefix)))
		if value == "" || !known[name] {
			return "", nil
		}
		return name, value
	}})
	if err := k.Load(environment, nil); err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	var err error
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		if err != nil || flag.Changed || !isSetting(flag) || !k.Exists(flag.Name) {
			return
		}
		where := envName(prefix, flag.Name)
		if os.Getenv(where) == "" {
			where = fmt.Sprintf("%s: %s", path.Value, flag.Name)
		}
		err = set(flag, k.Get(flag.Name), where)
	})
	return err
}

// declares reports whether cmd has settings of its own. Completion and the like have none, and must work beside a
// broken file.
func declares(cmd *cobra.Command) bool {
	found := false
	cmd.LocalNonPersistentFlags().VisitAll(func(flag *pflag.Flag) { found = found || isSetting(flag) })
	return found
}

// settings returns the names that may be set outside the command line, of all commands: they share one file.
func settings(root *cobra.Command) map[string]bool {
	known := map[string]bool{}
	for cmd := range commands(root) {
		for _, set := range []*pflag.FlagSet{cmd.Flags(), cmd.PersistentFlags()} {
			set.VisitAll(func(flag *pflag.Flag) {
				if isSetting(flag) {
					known[flag.Name] = true
				}
			})
		}
	}
	return known
}

func loadFile(k *koanf.Koanf, path string, known map[string]bool) error {
	if path == "" {
		return nil
	}
	if err := k.Load(file.Provider(path), plainYAML{}); err != nil {
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			return &Error{Err: fmt.Errorf("read the configuration: %w", e), Hint: "check the path given with --config"}
		}
		return &Error{Err: fmt.Errorf("%s: %w", path, err), Hint: "a line is KEY: VALUE, such as max-body: 1mb"}
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(known)), func(name string) bool { return name == configFlag })
	for _, key := range k.Keys() {
		if slices.Contains(names, key) {
			continue
		}
		hint := "the keys are the flags of --help without their dashes"
		if near, ok := nearest(key, names); ok {
			hint = fmt.Sprintf("did you mean %s?", near)
		}
		return &Error{Err: fmt.Errorf("%s: unknown key %q", path, key), Hint: hint}
	}
	return nil
}

// set gives flag the value that koanf holds: a text, or the texts of a YAML list.
func set(flag *pflag.Flag, value any, where string) error {
	var err error
	text := ""
	switch v := value.(type) {
	case string:
		text, err = v, flag.Value.Set(v)
	case []string:
		many, ok := flag.Value.(interface{ setAll([]string) error })
		if !ok {
			return &Error{Err: fmt.Errorf("%s: one value wanted, not a list", where)}
		}
		text, err = strings.Join(v, ", "), many.setAll(v)
	default:
		return fmt.Errorf("cli: BUG: %s is a %T", where, value)
	}
	if err != nil {
		return badValue(where, text, err)
	}
	flag.Changed = true
	return nil
}
