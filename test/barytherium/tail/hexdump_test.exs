defmodule Barytherium.Tail.HexdumpTest do
  use ExUnit.Case, async: true

  alias Barytherium.Tail.Hexdump

  defp dump(bytes), do: bytes |> Hexdump.dump() |> IO.iodata_to_binary()

  test "looks like xxd's output" do
    assert dump("") == ""
    assert dump("abc") == "00000000: 6162 63                                  abc\n"

    assert dump(<<0, 31, 32, 126, 127, 255>> <> "0123456789" <> "x") == """
           00000000: 001f 207e 7fff 3031 3233 3435 3637 3839  .. ~..0123456789
           00000010: 78                                       x
           """
  end

  @tag :tmp_dir
  test "is the same as xxd's output", %{tmp_dir: dir} do
    if xxd = System.find_executable("xxd") do
      for size <- 0..40 do
        bytes = :binary.list_to_bin(Enum.map(1..size//1, &rem(&1 * 37, 256)))
        path = Path.join(dir, "#{size}")
        File.write!(path, bytes)
        {expected, 0} = System.cmd(xxd, [path])
        assert dump(bytes) == expected
      end
    end
  end
end
