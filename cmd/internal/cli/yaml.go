package cli

import (
	"errors"
	"fmt"

	"go.yaml.in/yaml/v3"
)

// plainYAML is a koanf.Parser that keeps every value as it is written. YAML's own types would make 7 of a session named
// 007, and true of one named yes.
type plainYAML struct{}

// Unmarshal returns the one mapping in b: keys with dashes for underscores, values as string, or []string for a list.
// Keys without a value are left out.
func (plainYAML) Unmarshal(b []byte) (map[string]any, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	settings := map[string]any{}
	if len(doc.Content) == 0 { // empty, or comments only
		return settings, nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: not a list of KEY: VALUE lines", top.Line)
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, node := top.Content[i], top.Content[i+1]
		name := dashed(key.Value)
		if _, twice := settings[name]; twice {
			return nil, fmt.Errorf("line %d: %s is set twice", key.Line, name)
		}
		value, err := plainValue(node)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", key.Line, name, err)
		}
		if value != nil {
			settings[name] = value
		}
	}
	return settings, nil
}

// Marshal is not supported: settings are never written.
func (plainYAML) Marshal(map[string]any) ([]byte, error) {
	return nil, errors.New("settings cannot be written as yaml")
}

// plainValue returns a string, a []string, or nil for no value.
func plainValue(node *yaml.Node) (any, error) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	switch node.Kind {
	case yaml.ScalarNode:
		if node.ShortTag() == "!!null" {
			return nil, nil
		}
		return node.Value, nil
	case yaml.SequenceNode:
		texts := []string{}
		for _, item := range node.Content {
			if item.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("line %d: a list of plain values is wanted", item.Line)
			}
			texts = append(texts, item.Value)
		}
		return texts, nil
	}
	return nil, errors.New("a value or a list is wanted, not further keys")
}
