defmodule Barytherium.Tail.Hexdump do
  @moduledoc false
  # Shows bytes as `xxd` does: the offset, eight pairs, and the printable characters.

  alias Barytherium.Text

  @columns 16
  # Eight groups of four digits, and the spaces between them.
  @width 39

  @spec dump(binary()) :: iolist()
  def dump(bytes), do: lines(bytes, 0)

  defp lines(<<row::binary-size(@columns), rest::binary>>, offset),
    do: [line(row, offset) | lines(rest, offset + @columns)]

  defp lines(<<>>, _offset), do: []
  defp lines(row, offset), do: [line(row, offset)]

  defp line(row, offset) do
    digits = row |> pairs() |> Enum.join(" ") |> String.pad_trailing(@width)
    [Text.hex(offset, 8), ": ", digits, "  ", printable(row), "\n"]
  end

  defp pairs(<<pair::binary-size(2), rest::binary>>), do: [digits(pair) | pairs(rest)]
  defp pairs(<<>>), do: []
  defp pairs(last), do: [digits(last)]

  defp digits(bytes), do: Base.encode16(bytes, case: :lower)

  defp printable(row), do: for(<<byte <- row>>, do: if(byte in 0x20..0x7E, do: byte, else: ?.))
end
