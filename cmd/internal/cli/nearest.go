package cli

import "strings"

// nearest returns the candidate that was most likely meant by name, and false if none is near enough to be worth
// naming: at most one edit in three characters, or one of the two begins with the other.
func nearest(name string, candidates []string) (string, bool) {
	name = strings.ToLower(name)
	best, bestDistance := "", min(len(name)/3+2, 5)
	for _, c := range candidates {
		d := distance(name, c)
		if len(name) >= 3 && (strings.HasPrefix(c, name) || strings.HasPrefix(name, c)) {
			d = min(d, 1)
		}
		if d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best, best != ""
}

// distance counts the insertions, deletions, substitutions and swaps of neighbours that turn a into b (optimal string
// alignment). It looks at bytes: the names of flags and commands are ASCII.
func distance(a, b string) int {
	const longest = 64 // of our own names; keeps the work small for a pasted argument
	if len(a) > longest || len(b) > longest {
		return longest
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, before
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
