package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	helpWidth  = 100 // columns; a word that does not fit goes on the next line
	helpIndent = 30  // columns before the description of a flag
)

// annotationGroupOnly marks a command that does nothing but hold others.
const annotationGroupOnly = "cli_group_only"

// writeHelp prints what cmd does, how it is called, and its flags under their headings. prefix is that of the
// environment variables.
func writeHelp(w io.Writer, cmd *cobra.Command, prefix string) {
	var b strings.Builder
	text := cmd.Long
	if text == "" {
		text = cmd.Short
	}
	fmt.Fprintf(&b, "%s\n\nUsage:\n", strings.TrimSpace(text))
	if _, only := cmd.Annotations[annotationGroupOnly]; cmd.Runnable() && !only {
		fmt.Fprintf(&b, "  %s\n", cmd.UseLine())
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s COMMAND\n\nCommands:\n", cmd.CommandPath())
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				writeEntry(&b, "  "+c.Name(), c.Short)
			}
		}
	}
	if cmd.HasExample() {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", strings.TrimRight(cmd.Example, "\n"))
	}
	for _, g := range flagGroups(cmd) {
		fmt.Fprintf(&b, "\n%s:\n", g.title)
		for _, flag := range g.flags {
			writeFlag(&b, flag, prefix)
		}
	}
	if declares(cmd) {
		fmt.Fprintf(&b, "\nA flag counts before its environment variable, and that before the file of --config.\n")
	}
	io.WriteString(w, b.String())
}

type flagGroup struct {
	title string
	flags []*pflag.Flag
}

// flagGroups returns the visible flags of cmd by heading: its own first, then those of the commands above it.
func flagGroups(cmd *cobra.Command) []flagGroup {
	var groups []flagGroup
	seen := map[string]bool{}
	collect := func(flag *pflag.Flag) {
		if flag.Hidden || seen[flag.Name] {
			return
		}
		seen[flag.Name] = true
		title := "General" // of cobra's own
		if t := flag.Annotations[annotationGroup]; t != nil {
			title = t[0]
		}
		for i := range groups {
			if groups[i].title == title {
				groups[i].flags = append(groups[i].flags, flag)
				return
			}
		}
		groups = append(groups, flagGroup{title, []*pflag.Flag{flag}})
	}
	own := cmd.LocalNonPersistentFlags()
	own.SortFlags = false
	help := own.Lookup("help")
	own.VisitAll(func(flag *pflag.Flag) {
		if flag != help { // comes last
			collect(flag)
		}
	})
	for c := cmd; c != nil; c = c.Parent() {
		c.PersistentFlags().VisitAll(collect)
	}
	if help != nil {
		collect(help)
	}
	return groups
}

func writeFlag(b *strings.Builder, flag *pflag.Flag, prefix string) {
	usage, left := flag.Usage, "  --"+flag.Name
	if flag.Shorthand != "" {
		left = "  -" + flag.Shorthand + ", --" + flag.Name
	}
	if word := valueWord(flag); word != "" {
		left += " " + word
	}
	if v := flag.DefValue; v != "" && v != "false" && v != "0" && v != "0s" {
		usage += " (default " + v + ")"
	}
	if isSetting(flag) {
		usage += " [" + envName(prefix, flag.Name) + "]"
	}
	writeEntry(b, left, usage)
}

// writeEntry prints left and, beside it and wrapped, text.
func writeEntry(b *strings.Builder, left, text string) {
	b.WriteString(left)
	column := len(left)
	if column+2 > helpIndent {
		b.WriteByte('\n')
		column = 0
	}
	fmt.Fprintf(b, "%*s", helpIndent-column, "")
	column = helpIndent
	for i, word := range strings.Fields(text) {
		if i > 0 && column+1+len(word) > helpWidth {
			fmt.Fprintf(b, "\n%*s", helpIndent, "")
			column = helpIndent
		} else if i > 0 {
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	b.WriteByte('\n')
}

// helpCommand replaces cobra's, which prints the whole usage when it does not know the command.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "show how a command is used",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			found := cmd.Root()
			for _, name := range args {
				below := child(found, name)
				if below == nil {
					return UnknownCommand(found, name)
				}
				found = below
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

func child(cmd *cobra.Command, name string) *cobra.Command {
	for _, c := range cmd.Commands() {
		if c.Name() == name {
			return c
		}
	}
	return nil
}
