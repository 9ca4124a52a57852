defmodule Barytherium.Tail.Xml do
  @moduledoc false
  # XML with a line for each tag, for people. An element that holds only a text stays on its line.

  @token ~r/<!--.*?-->|<!\[CDATA\[.*?\]\]>|<\?.*?\?>|<(?:[^>"']|"[^"]*"|'[^']*')*>|[^<]+/s

  # Elements that are deeper are not indented any further: a peer may send any depth.
  @deepest 40

  @doc "The text, laid out; `:error` if it is no XML whose tags fit each other."
  @spec indent(binary()) :: {:ok, iodata()} | :error
  def indent(text) do
    tokens = @token |> Regex.scan(text) |> List.flatten()

    if IO.iodata_length(tokens) == byte_size(text),
      do: tokens |> Enum.reject(&(String.trim(&1) == "")) |> lines([], []),
      else: :error
  end

  # `open` are the elements around, the innermost first: the name of each, and how deep its contents are.
  defp lines([], [], done), do: {:ok, Enum.reverse(done)}
  defp lines([], _not_closed, _done), do: :error

  defp lines(["</" <> name | tokens], [{open, _depth} | outer], done) do
    if String.trim_trailing(name, ">") |> String.trim() == open,
      do: lines(tokens, outer, [line(outer, "</" <> name) | done]),
      else: :error
  end

  defp lines(["</" <> _name | _tokens], [], _done), do: :error

  defp lines(["<" <> rest = tag | tokens], open, done) do
    if opens?(tag) do
      element(tag, name(rest), tokens, open, done)
    else
      lines(tokens, open, [line(open, tag) | done])
    end
  end

  defp lines([text | tokens], open, done),
    do: lines(tokens, open, [line(open, String.trim(text)) | done])

  defp element(tag, name, ["</" <> closing | tokens], open, done),
    do: on_a_line(tag, name, "", closing, tokens, open, done)

  defp element(tag, name, [text, "</" <> closing | tokens], open, done)
       when binary_part(text, 0, 1) != "<",
       do: on_a_line(tag, name, text, closing, tokens, open, done)

  defp element(tag, name, tokens, open, done),
    do: lines(tokens, [{name, depth(open) + 1} | open], [line(open, tag) | done])

  defp on_a_line(tag, name, text, closing, tokens, open, done) do
    if String.trim_trailing(closing, ">") |> String.trim() == name,
      do: lines(tokens, open, [line(open, [tag, text, "</", closing]) | done]),
      else: :error
  end

  defp opens?(tag), do: not (String.ends_with?(tag, "/>") or tag =~ ~r/\A<[!?]/)
  defp name(rest), do: rest |> String.split([" ", "\t", "\r", "\n", ">"], parts: 2) |> hd()
  defp line(open, text), do: [List.duplicate("  ", min(depth(open), @deepest)), text, ?\n]

  defp depth([]), do: 0
  defp depth([{_name, depth} | _outer]), do: depth
end
