package cli

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The annotations of a flag. A flag without annotationGroup is cobra's own (help) and no setting.
const (
	annotationGroup   = "cli_group"    // the heading it stands under in the help
	annotationValue   = "cli_value"    // what the help shows for its value; absent: it takes none
	annotationArgOnly = "cli_arg_only" // present: cannot be set in the environment or a file
)

// Flags declares the flags of one command. Each is a setting with one name: on the command line, in the environment and
// as a key of the configuration file. The methods take that name as the help shows it, with a word for its value:
// "max-body SIZE".
type Flags struct {
	cmd   *cobra.Command
	set   *pflag.FlagSet
	group string
}

// LocalFlags returns the flags of cmd alone.
func LocalFlags(cmd *cobra.Command) *Flags {
	return newFlags(cmd, cmd.Flags())
}

// GlobalFlags returns the flags of cmd and of every command below it.
func GlobalFlags(cmd *cobra.Command) *Flags {
	return newFlags(cmd, cmd.PersistentFlags())
}

func newFlags(cmd *cobra.Command, set *pflag.FlagSet) *Flags {
	set.SortFlags = false // the help shows them as they were declared
	return &Flags{cmd: cmd, set: set, group: "Flags"}
}

// Group sets the heading in the help for the flags declared after it.
func (f *Flags) Group(title string) { f.group = title }

// ArgOnly makes the named flags count on the command line alone: for one that says what to do this time.
func (f *Flags) ArgOnly(names ...string) {
	for _, name := range names {
		f.set.Lookup(name).Annotations[annotationArgOnly] = nil
	}
}

// General declares the flags that every program has: --config, --log-level and --log-format.
func (f *Flags) General(logLevel, logFormat *string) {
	f.Group("General")
	var path string
	f.String(&path, configFlag+" FILE", "", "settings in YAML; the keys are the flags without their dashes")
	f.Choice(logLevel, "log-level LEVEL", "info", logLevels, "what to log: debug, info, warn or error")
	f.Choice(logFormat, "log-format FORMAT", "text", logFormats, "how to log it: text or json")
}

// Hide leaves the named flags out of the help and of suggestions.
func (f *Flags) Hide(names ...string) {
	for _, name := range names {
		f.set.Lookup(name).Hidden = true
	}
}

// String declares a setting of any text.
func (f *Flags) String(p *string, name, value, usage string) {
	*p = value
	f.add(&scalar[string]{p: p, parse: parseText, format: formatText}, name, usage)
}

// Bool declares a switch, off unless given.
func (f *Flags) Bool(p *bool, name string, value bool, usage string) {
	*p = value
	f.add(&scalar[bool]{p: p, kind: "bool", parse: parseBool, format: formatAny[bool]}, name, usage)
	f.set.Lookup(name).NoOptDefVal = "true"
}

// Optional lets a declared flag of text be given without a value, which then is value. An argument right after the flag
// is its value if fits says so, else one of the command's own.
func (f *Flags) Optional(name, value string, fits func(string) bool) {
	flag := f.set.Lookup(name)
	flag.NoOptDefVal = value
	flag.Value.(*scalar[string]).fits = fits
}

// joinOptional returns args with the value of each flag that can stand alone joined to it, as pflag wants it.
func joinOptional(root *cobra.Command, args []string) []string {
	cmd, _, err := root.Find(args)
	if err != nil {
		return args // which the command line's own error says
	}
	var joined []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(joined, args[i:]...)
		}
		name, long := strings.CutPrefix(arg, "--")
		if flag := cmd.Flags().Lookup(name); long && flag != nil && i+1 < len(args) {
			if v, ok := flag.Value.(*scalar[string]); ok && v.fits != nil && v.fits(args[i+1]) {
				i++
				arg += "=" + args[i]
			}
		}
		joined = append(joined, arg)
	}
	return joined
}

// Int declares a whole number.
func (f *Flags) Int(p *int, name string, value int, usage string) {
	*p = value
	f.add(&scalar[int]{p: p, parse: parseInt, format: formatAny[int]}, name, usage)
}

// Float declares a finite number.
func (f *Flags) Float(p *float64, name string, value float64, usage string) {
	*p = value
	f.add(&scalar[float64]{p: p, parse: parseFloat, format: formatAny[float64]}, name, usage)
}

// Duration declares a span of time, written as 30s or 1h30m.
func (f *Flags) Duration(p *time.Duration, name string, value time.Duration, usage string) {
	*p = value
	f.add(&scalar[time.Duration]{p: p, parse: parseDuration, format: formatAny[time.Duration]}, name, usage)
}

// Size declares a number of bytes; see ParseSize.
func (f *Flags) Size(p *int64, name string, value int64, usage string) {
	*p = value
	f.add(&scalar[int64]{p: p, parse: ParseSize, format: FormatSize}, name, usage)
}

// Choice declares a setting that is one of choices.
func (f *Flags) Choice(p *string, name, value string, choices []string, usage string) {
	*p = value
	f.add(&scalar[string]{p: p, parse: oneOf(choices), format: formatText}, name, usage)
	f.complete(name, choices)
}

// Choices declares a list of some of choices.
func (f *Flags) Choices(p *[]string, name string, value, choices []string, usage string) {
	*p = slices.Clone(value)
	f.add(&list[string]{p: p, parse: oneOf(choices), format: formatText, separator: ","}, name, usage)
	f.complete(name, choices)
}

// List declares a list: the flag can be repeated, each time with one or more values separated by commas, and in a file
// it is a YAML list or such a text. Declared values are replaced by the first source that has any.
func List[T any](f *Flags, p *[]T, name string, parse func(string) (T, error), usage string) {
	f.add(&list[T]{p: p, parse: parse, format: formatAny[T], separator: ","}, name, usage)
}

// Lines declares a list whose values may hold commas: one value for each time the flag is given, and one a line in the
// environment.
func (f *Flags) Lines(p *[]string, name, usage string) {
	f.add(&list[string]{p: p, parse: parseText, format: formatText, separator: "\n"}, name, usage)
}

// Strings declares a list of any texts without commas.
func (f *Flags) Strings(p *[]string, name, usage string) { List(f, p, name, parseText, usage) }

// add declares "name WORD".
func (f *Flags) add(v pflag.Value, name, usage string) {
	name, word, takesValue := strings.Cut(name, " ")
	flag := f.set.VarPF(v, name, "", usage)
	flag.Annotations = map[string][]string{annotationGroup: {f.group}}
	if takesValue {
		flag.Annotations[annotationValue] = []string{word}
	}
}

func (f *Flags) complete(name string, choices []string) {
	name, _, _ = strings.Cut(name, " ")
	// The error says that name is not declared, and it has just been.
	_ = f.cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp))
}

// valueWord returns what stands for the value of flag in the help; empty if it takes none.
func valueWord(flag *pflag.Flag) string { return strings.Join(flag.Annotations[annotationValue], "") }

// isSetting reports whether flag was declared by Flags, and so can be set outside the command line too.
func isSetting(flag *pflag.Flag) bool {
	_, argOnly := flag.Annotations[annotationArgOnly]
	return flag.Annotations[annotationGroup] != nil && !argOnly
}

// envName returns the environment variable of the flag name: HARPD_ and max-body give HARPD_MAX_BODY.
func envName(prefix, name string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
