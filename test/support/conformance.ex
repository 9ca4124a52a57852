defmodule Barytherium.Conformance do
  @moduledoc """
  Reads the conformance cases in `native/stomp/tests/conformance`. The README there describes their
  format.
  """

  alias Barytherium.Frame

  @directory Path.expand("../../native/stomp/tests/conformance", __DIR__)

  @enforce_keys [:name, :versions, :options]
  defstruct [:name, :versions, :options, input: "", encodes: nil, frames: [], error: nil]

  @doc """
  All cases. `:versions` are those that the case is run in, `nil` for a connection before its first
  frame. `:error` is `{rule, offset}`.
  """
  def cases do
    for path <- @directory |> Path.join("*.txt") |> Path.wildcard() |> Enum.sort(),
        line <- path |> File.read!() |> String.split("\n", trim: true),
        reduce: [] do
      cases -> line |> String.split(" ", parts: 2) |> read_line(cases)
    end
    |> Enum.reverse()
  end

  @doc "The cases about decoding."
  def decoding, do: Enum.filter(cases(), &is_nil(&1.encodes))

  @doc "`input` cut in two at every point."
  def cuts(input) do
    for at <- 0..byte_size(input) do
      [binary_part(input, 0, at), binary_part(input, at, byte_size(input) - at)]
    end
  end

  @doc "`input` byte by byte."
  def bytes(input), do: for(<<byte <- input>>, do: <<byte>>)

  defp read_line(["###", header], cases) do
    [name | words] = String.split(header)
    {options, versions} = Enum.split_with(words, &String.contains?(&1, "="))
    versions = if versions == [], do: ["1.0", "1.1", "1.2"], else: versions

    case = %__MODULE__{
      name: name,
      versions: Enum.map(versions, &if(&1 == "new", do: nil, else: &1)),
      options: Enum.map(options, &option/1)
    }

    [case | cases]
  end

  defp read_line(["<", text], [case | cases]),
    do: [%{case | input: case.input <> IO.iodata_to_binary(strings(text))} | cases]

  defp read_line([">", text], [case | cases]),
    do: [%{case | frames: case.frames ++ [frame(text)]} | cases]

  defp read_line(["=", text], [case | cases]), do: [%{case | encodes: frame(text)} | cases]

  defp read_line(["!", text], [case | cases]) do
    {rule, offset} =
      case String.split(text) do
        [rule, offset] -> {rule, String.to_integer(offset)}
        [rule] -> {rule, 0}
      end

    [%{case | error: {String.to_atom(rule), offset}} | cases]
  end

  defp read_line(_heading, cases), do: cases

  defp option(word) do
    [name, value] = String.split(word, "=")
    {String.to_atom(name), option_value(value)}
  end

  defp option_value(value) when value in ["infinity", "lenient"], do: String.to_atom(value)
  defp option_value(value), do: String.to_integer(value)

  defp frame(text) do
    [command, rest] = String.split(text, " ", parts: 2)
    [_all, headers, body] = Regex.run(~r/\A(.*)\| (.*)\z/s, rest)
    headers = headers |> strings() |> Enum.chunk_every(2) |> Enum.map(&List.to_tuple/1)

    %Frame{
      command: command |> String.downcase() |> String.to_atom(),
      headers: headers,
      body: IO.iodata_to_binary(strings(body))
    }
  end

  defp strings(text) do
    for [string] <- Regex.scan(~r/"((?:[^"\\]|\\.)*)"/, text, capture: :all_but_first),
        do: unescape(string)
  end

  defp unescape("\\x" <> <<digits::binary-size(2), rest::binary>>),
    do: <<String.to_integer(digits, 16)>> <> unescape(rest)

  defp unescape(<<?\\, char, rest::binary>>), do: <<escaped(char)>> <> unescape(rest)
  defp unescape(<<char, rest::binary>>), do: <<char>> <> unescape(rest)
  defp unescape(""), do: ""

  defp escaped(?n), do: ?\n
  defp escaped(?r), do: ?\r
  defp escaped(?t), do: ?\t
  defp escaped(?0), do: 0
  defp escaped(char), do: char
end
