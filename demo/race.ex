defmodule Demo.Race do
  @moduledoc """
  The highest rate of this machine: the same messages, sent without a pause by a process of this VM, received and
  inflated by this library, and by a straightforward loop in Elixir. Both deliver `Barytherium.Frame`s to a process that
  counts them; behind the Elixir loop it inflates them too.
  """

  alias Barytherium.{Connection, Frame}
  alias Barytherium.Network.Receiver

  @doc "Messages a second of both, each measured for `milliseconds`: `{ours, elixir}`."
  def run(messages, milliseconds) do
    bytes = for body <- Enum.take(messages, 300), into: "", do: frame(body)

    {measure(&receive_natively/2, bytes, milliseconds),
     measure(&receive_in_elixir/2, bytes, milliseconds)}
  end

  defp frame(body) do
    headers = [
      {"subscription", "1-AAAA"},
      {"destination", "/topic/darwin.pushport-v16"},
      {"message-id", "ID:demo-1:1"},
      {"content-length", to_string(byte_size(body))}
    ]

    %Frame{command: :message, headers: headers, body: body}
    |> Frame.format()
    |> IO.iodata_to_binary()
  end

  defp measure(receive_with, bytes, milliseconds) do
    {:ok, listener} = :gen_tcp.listen(0, [:binary, active: false, ip: {127, 0, 0, 1}])
    {:ok, port} = :inet.port(listener)
    feed = spawn_link(fn -> feed(listener, bytes) end)
    counter = :counters.new(1, [])
    contender = spawn_link(fn -> receive_with.(port, counter) end)
    Process.sleep(div(milliseconds, 4))
    {started, before} = {System.monotonic_time(:microsecond), :counters.get(counter, 1)}
    Process.sleep(milliseconds)
    count = :counters.get(counter, 1) - before
    seconds = (System.monotonic_time(:microsecond) - started) / 1_000_000

    for pid <- [contender, feed] do
      Process.unlink(pid)
      Process.exit(pid, :kill)
    end

    :gen_tcp.close(listener)
    count / seconds
  end

  defp feed(listener, bytes) do
    {:ok, socket} = :gen_tcp.accept(listener)
    :ok = :gen_tcp.send(socket, "CONNECTED\nversion:1.2\n\n\0")
    flood(socket, bytes)
  end

  defp flood(socket, bytes) do
    if :gen_tcp.send(socket, bytes) == :ok, do: flood(socket, bytes)
  end

  defp receive_natively(port, counter) do
    {:ok, socket} = Connection.connect({127, 0, 0, 1}, port)
    network = spawn_link(&answer_network/0)
    {:ok, _receiver} = Receiver.start_link(socket, self(), network, self(), inflate: true)
    count(counter, & &1)
  end

  defp answer_network do
    receive do
      {:"$gen_call", from, {:connected_frame, _frame}} -> GenServer.reply(from, {0, 0})
      _other -> :ok
    end

    answer_network()
  end

  defp receive_in_elixir(port, counter) do
    listener = self()

    spawn_link(fn ->
      {:ok, socket} =
        :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false, buffer: 131_072])

      loop(socket, "", listener)
    end)

    count(counter, fn frame -> %{frame | body: :zlib.gunzip(frame.body)} end)
  end

  defp count(counter, inflate) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        messages = for %{command: :message} = frame <- frames, do: inflate.(frame)
        :counters.add(counter, 1, length(messages))
    end

    count(counter, inflate)
  end

  defp loop(socket, rest, listener) do
    {:ok, bytes} = :gen_tcp.recv(socket, 0)
    {frames, rest} = parse(rest <> bytes, [])
    if frames != [], do: GenServer.cast(listener, {:barytherium, :frames, {frames, self()}})
    loop(socket, rest, listener)
  end

  defp parse(bytes, frames) do
    with [head, rest] <- :binary.split(bytes, "\n\n"),
         [command | lines] = :binary.split(head, "\n", [:global]),
         headers = Enum.map(lines, &List.to_tuple(:binary.split(&1, ":"))),
         {_name, length} <- List.keyfind(headers, "content-length", 0, {nil, "0"}),
         length = String.to_integer(length),
         <<body::binary-size(length), 0, rest::binary>> <- rest do
      frame = %Frame{command: command(command), headers: headers, body: body}
      parse(rest, [frame | frames])
    else
      _incomplete -> {Enum.reverse(frames), bytes}
    end
  end

  defp command("MESSAGE"), do: :message
  defp command("CONNECTED"), do: :connected
end
