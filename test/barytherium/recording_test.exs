defmodule Barytherium.RecordingTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog, only: [with_log: 1]

  alias Barytherium.{Directory, Frame, Recording}
  alias Barytherium.Recording.Writer

  @moduletag capture_log: true
  @mib 1024 * 1024

  setup do
    %{path: Path.join(Directory.make!(), "feed.rec")}
  end

  defp message(body, headers \\ []) do
    length = {"content-length", "#{byte_size(body)}"}

    %Frame{
      command: :message,
      headers: [{"destination", "/topic/a"} | headers] ++ [length],
      body: body
    }
  end

  defp record(path, entries, limit \\ 1_000 * @mib) do
    {:ok, writer} = Writer.open(path, limit)
    {:ok, writer} = Writer.append(writer, entries)
    :ok = Writer.sync(writer)
    :ok = Writer.close(writer)
  end

  defp read(path, from \\ 0), do: path |> Recording.stream(from) |> Enum.to_list()

  test "frames are read as they were", %{path: path} do
    odd = [{"x", "1"}, {"x", "2"}, {"a:\n\\", "b:\r\n\\"}, {"blank", " "}, {"empty", ""}]

    frames = [
      %Frame{command: :connected, headers: [{"version", "1.2"}, {"server", "RabbitMQ/3.10.8"}]},
      message(for(byte <- 0..255, into: "", do: <<byte>>), odd),
      message(""),
      # Without a length, as ActiveMQ sends a text.
      %Frame{command: :message, headers: [{"destination", "/queue/a"}], body: "text\n\n"},
      %Frame{command: :message, headers: [{"destination", "/queue/a"}], body: ""},
      message(:binary.copy("x", 3 * @mib))
    ]

    entries = Enum.with_index(frames, fn frame, index -> {1_000_000 + index, frame} end)
    record(path, entries)
    assert read(path) == entries
    # A connection's body is nil or empty, and equal.
    assert Enum.map(read(path, 1_000_003), &elem(&1, 0)) == [1_000_003, 1_000_004, 1_000_005]
  end

  test "random frames are read as they were", %{path: path} do
    :rand.seed(:exsss, 26)
    bytes = fn most -> :rand.bytes(:rand.uniform(most + 1) - 1) end

    entries =
      for time <- 1..500 do
        headers = for _ <- 1..:rand.uniform(5), do: {<<?h>> <> bytes.(8), bytes.(20)}
        {time, message(bytes.(300), headers)}
      end

    for {chunk, _} <- entries |> Enum.chunk_every(70) |> Enum.with_index(),
        do: record(path, chunk)

    assert read(path) == entries
  end

  # The file offsets after each record.
  defp ends(entries) do
    sizes = for {time, frame} <- entries, do: IO.iodata_length(Recording.encode(time, frame))
    sizes |> Enum.scan(&(&1 + &2)) |> Enum.map(&(&1 + 9))
  end

  test "a recording that was torn anywhere is read up to there, and goes on in the next file", %{
    path: path
  } do
    entries = for time <- 1..3, do: {time, message("number #{time}")}
    record(path, entries)
    record(path, [{9, message("later")}])
    whole = File.read!(path)

    for torn <- 9..(byte_size(whole) - 1) do
      File.write!(path, binary_part(whole, 0, torn))
      left = Enum.take(entries, Enum.count(ends(entries), &(&1 <= torn)))
      assert {torn, read(path)} == {torn, left ++ [{9, message("later")}]}
    end
  end

  test "a damaged record is left out, with what follows up to the next one in the index", %{
    path: path
  } do
    entries = for time <- 1..40, do: {time, message(:binary.copy(<<time>>, 100_000))}
    record(path, entries)
    whole = File.read!(path)

    # In a body, and in the size of a record, which is read as a larger one, or as one that cannot be.
    for {at, byte} <- [
          {250_000, 0},
          {Enum.at(ends(entries), 1), 0xFF},
          {Enum.at(ends(entries), 1) + 1, 0x05}
        ] do
      <<before::binary-size(at), _byte, rest::binary>> = whole
      File.write!(path, [before, byte, rest])
      {times, log} = with_log(fn -> for {time, _frame} <- read(path), do: time end)
      assert Enum.take(times, 2) == [1, 2]
      assert [next | _] = Enum.drop(times, 2)
      assert next in 9..13 and times == [1, 2] ++ Enum.to_list(next..40)
      assert log =~ "feed.rec is damaged, or was not written to its end, at byte 200"
      # Without an index nothing is known of what follows.
      assert for({time, _frame} <- read(path, 20), do: time) == Enum.to_list(20..40)
    end

    File.rm!(Recording.index(path))
    assert [{1, _}, {2, _}] = read(path)
  end

  test "large records are found behind damage and by their time", %{path: path} do
    entries = for time <- 1..12, do: {time, message(:binary.copy(<<time>>, 600_000))}
    record(path, entries)
    <<before::binary-size(700_000), _byte, rest::binary>> = File.read!(path)
    File.write!(path, [before, 0, rest])
    assert [1, next | _] = times = for({time, _frame} <- read(path), do: time)
    assert next in 3..4 and times == [1 | Enum.to_list(next..12)]
    assert for({time, _frame} <- read(path, 9), do: time) == Enum.to_list(9..12)
  end

  test "messages that came together have the same time, and none is left out", %{path: path} do
    early = for time <- 1..10, do: {time, message(:binary.copy("x", 100_000))}
    record(path, early ++ for(n <- 1..40, do: {200, message(:binary.copy(<<n>>, 100_000))}))
    assert length(read(path, 200)) == 40
  end

  test "a recording can be read while it grows", %{path: path} do
    {:ok, writer} = Writer.open(path, 1_000 * @mib)
    {:ok, writer} = Writer.append(writer, for(n <- 1..5, do: {n, message("#{n}")}))

    {frames, log} =
      with_log(fn ->
        path
        |> Recording.stream()
        |> Enum.map(fn {time, _frame} -> {time, Writer.append(writer, [{9, message("more")}])} end)
      end)

    assert Enum.map(frames, &elem(&1, 0)) == Enum.to_list(1..5)
    # Others log meanwhile.
    refute log =~ path
  end

  test "a file that has its size is followed by others, and so is each run", %{path: path} do
    entries = for time <- 1..30, do: {time, message("number #{time}")}
    {:ok, writer} = Writer.open(path, 500)

    writer =
      for entry <- Enum.take(entries, 20), reduce: writer do
        writer -> with {:ok, writer} <- Writer.append(writer, [entry]), do: writer
      end

    Writer.close(writer)
    parts = Recording.parts(path)
    assert length(parts) in 3..6
    record(path, Enum.drop(entries, 20))
    assert Recording.parts(path) == parts ++ [Recording.part_path(path, length(parts) + 1)]

    assert Enum.map(parts, &Path.basename/1) |> Enum.take(3) == [
             "feed.rec",
             "feed.2.rec",
             "feed.3.rec"
           ]

    assert Enum.all?(parts, &(File.stat!(&1).size < 700))
    assert read(path) == entries
    assert read(path, 25) == Enum.drop(entries, 24)
    # A batch is never divided.
    assert List.last(Recording.parts(path)) |> File.stat!() |> Map.fetch!(:size) > 700
  end

  test "two that record to the same path have files of their own", %{path: path} do
    {:ok, one} = Writer.open(path, 200)
    {:ok, other} = Writer.open(path, 200)

    for n <- 1..10, reduce: {one, other} do
      {one, other} ->
        {:ok, one} = Writer.append(one, [{n, message("one #{n}")}])
        {:ok, other} = Writer.append(other, [{n, message("other #{n}")}])
        {one, other}
    end

    bodies = for {_time, frame} <- read(path), do: frame.body

    assert Enum.sort(bodies) ==
             Enum.sort(for n <- 1..10, who <- ["one", "other"], do: "#{who} #{n}")
  end

  test "files that are left over are not taken for parts of a new recording", %{path: path} do
    for n <- 1..2, do: record(path, [{n, message("#{n}")}])
    File.rm!(path)
    assert Writer.open(path, @mib) == {:error, :orphans}
  end

  test "the index leads to a time, and may be missing or of another file", %{path: path} do
    entries = for time <- 1..40, do: {time, message(:binary.copy(<<time>>, 100_000))}
    record(path, entries)
    offsets = ends(entries)
    assert [{time, offset} | _more] = index = Recording.entries(path)
    assert length(index) in 3..4 and time > 5 and offset > @mib
    assert Enum.all?(index, fn {_time, offset} -> offset in offsets end)
    assert Enum.map(read(path, 30), &elem(&1, 0)) == Enum.to_list(30..40)

    # What is before a time is not read.
    <<_first::binary-size(200_000), rest::binary>> = File.read!(path)
    File.write!(path, ["STOMPREC", 1, :binary.copy(<<0>>, 199_991), rest])
    log = ExUnit.CaptureLog.capture_log(fn -> assert length(read(path, 30)) == 11 end)
    refute log =~ path

    for index <- ["no index", for(n <- 1..20, into: <<>>, do: <<n::64, 1_000 * n::64>>)] do
      record(path <> ".other", for(time <- 1..40, do: {time, message("#{time}")}))
      File.write!(Recording.index(path <> ".other"), index)
      assert Enum.map(read(path <> ".other", 20), &elem(&1, 0)) == Enum.to_list(20..40)
      for file <- Path.wildcard(path <> ".other*"), do: File.rm!(file)
    end
  end

  test "what is no recording is refused, and left alone", %{path: path} do
    assert {:error, :enoent} = Recording.check(path)
    assert_raise File.Error, fn -> read(path) end

    for content <- ["not", "not a recording at all"] do
      File.write!(path, content)
      assert {:error, :not_a_recording} = Recording.check(path)
      assert {:error, :not_a_recording} = Writer.open(path, @mib)
      assert_raise ArgumentError, ~r/no recording/, fn -> read(path) end
      assert File.read!(path) == content
    end

    assert {:error, :enoent} = Writer.open("/no/such/directory/feed.rec", @mib)
    assert {:error, :not_a_recording} = Writer.open("/dev/null", @mib)
  end
end
