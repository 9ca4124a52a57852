defmodule Barytherium.Network.NativeCallsTest do
  @moduledoc "Connections without a socket, called as the receive loop calls them."
  use Barytherium.ReceiverCase, async: true

  alias Barytherium.Native

  # Lists in the mailbox of the listener at which a connection pauses.
  @mark 8

  defp open(listener, options \\ %{}) do
    stats = Native.new_stats()
    recipients = {listener, self()}
    options = native_options(@mark, options)

    {:ok, connection} =
      Native.open(nil, "", Frame.parse_state(max_headers: 100_000), options, recipients, stats)

    %{connection: connection, recipients: recipients, stats: stats}
  end

  defp feed(%{connection: connection, recipients: recipients}, bytes),
    do: Native.feed_inline(connection, bytes, recipients)

  # Each frame is a message, because it is fed alone.
  defp fill(connection) do
    case feed(connection, "MESSAGE\n\nx\0") do
      {:await_input, _time} -> fill(connection)
      {:look, _pid} -> looked(connection, @mark)
      {:await_room, time} -> {:await_room, time}
    end
  end

  defp looked(%{connection: connection, recipients: recipients}, queued),
    do: Native.looked(connection, queued, recipients)

  defp poll_room(%{connection: connection, recipients: recipients}),
    do: Native.poll_room(connection, recipients)

  test "a connection that has nothing to send gives back what it was granted" do
    listener = spawn_link(fn -> Process.sleep(:infinity) end)
    [first, second] = for _n <- 1..2, do: open(listener)
    assert {:await_room, _time} = fill(first)
    assert {:await_room, _time} = fill(second)
    # The listener has taken all. Each of the two may send half of the mark.
    assert {:look, ^listener} = poll_room(first)
    assert looked(first, 0) == :read_inline
    assert poll_room(second) == :read_inline
    # The first has nothing, so the second may send all of it before anybody looks again.
    assert {:await_input, _time} = feed(first, "")
    for _n <- 1..(@mark - 1), do: assert({:await_input, _time} = feed(second, "MESSAGE\n\nx\0"))
    assert {:look, ^listener} = feed(second, "MESSAGE\n\nx\0")
  end

  test "bytes that wait for a dirty thread count, and the peer was not silent" do
    connection = open(self(), %{hb_recv: 60_000})
    head = "MESSAGE\n" <> String.duplicate("a:b\n", 20_000)
    # Delays move the first deadline to earlier times, and the second to later ones.
    before = System.monotonic_time(:millisecond)
    assert {:await_input, left} = feed_dirty(connection, head)
    Process.sleep(300)
    assert feed(connection, "c:d") == :read_dirty
    assert {:await_input, left_now} = feed_dirty(connection, "")
    assert System.monotonic_time(:millisecond) + left_now - (before + left) >= 290
    assert Native.stats(connection.stats).bytes == byte_size(head) + 3
  end

  defp feed_dirty(%{connection: connection, recipients: recipients}, bytes),
    do: Native.feed_dirty(connection, bytes, recipients)
end
