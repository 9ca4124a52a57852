defmodule Barytherium.Network.Sender do
  @moduledoc """
  Writes frames and the client's heart-beats to a connection.

  `Barytherium.Network` starts it. The callback process gets its pid with
  `{:barytherium, :connect, {:ok, sender_pid}}` and with every list of frames.

  Frames that wait while others are being written are then sent together, so throughput rises with
  load. The connection ends with `{:barytherium, :disconnect, reason}` when a write fails or takes longer
  than the option `send_timeout`.

  ## A broker that reads slowly

  `write/3` waits for room: about 1 MiB of such writes is accepted ahead of what the socket takes, and the
  others wait for their turn, small ones not for longer than large ones. `write/2` cannot wait. If the frames
  that it was given take up more than the option `max_send_queue`, the connection ends with `:enobufs`. So
  whoever writes a lot uses `write/3`.

  Heart-beats, and the frames of `write/2`, do not wait for room.
  """

  alias Barytherium.{Connection, Frame}
  alias Barytherium.Connection.Deadline
  alias Barytherium.Network.{HeartBeat, SendLoop, WriteCounters}

  # Acknowledgements of a fast feed may wait in the mailbox in great number. Off the heap, they do
  # not make garbage collections longer.
  @spawn_options [spawn_opt: [message_queue_data: :off_heap]]

  # Milliseconds by which the answer to a write that waits for room may be late.
  @margin 500

  @doc false
  # `peer` is its name for the log.
  @spec start_link(pid(), Connection.socket(), WriteCounters.t(), timeout(), String.t()) ::
          GenServer.on_start()
  def start_link(network_pid, socket, counters, max_queue, peer) do
    init = {network_pid, socket, counters, max_queue, peer}
    GenServer.start_link(SendLoop, init, @spawn_options)
  end

  @doc """
  Writes `frames` in order and returns at once.

  Frames that are given between CONNECT and CONNECTED wait for CONNECTED, because the negotiated
  version decides how headers are escaped. Frames are lost if the sender has ended, or if the
  connection ends before they are written.

  Raises `ArgumentError` if `sender_pid` is not a pid, or for a frame that cannot be written (see
  `Barytherium.Frame.format/2`). If the negotiated version cannot escape a header that 1.2 could,
  the error is logged and all frames of this call are dropped.
  """
  @spec write(pid(), [Frame.t()]) :: :ok
  def write(sender_pid, frames) do
    {frames, cost} = prepare(sender_pid, frames)
    GenServer.cast(sender_pid, {:write, frames, cost})
  end

  @doc """
  Writes `frames` like `write/2`, and waits until the socket has taken them.

  After `:ok` the frames are in the buffers of the socket's driver and of the operating system. The
  peer may not have received them yet.

  Returns `{:error, reason}` if the frames could not be written. `reason` is the reason why the
  connection ended, or `:unescapable` for a header that the negotiated version cannot escape.

  A call between CONNECT and CONNECTED waits for CONNECTED. Apart from that it waits for room, and then at
  most `send_timeout` for each MiB of its own write and of each write before it.
  """
  @spec write(pid(), [Frame.t()], :sync) :: :ok | {:error, atom()}
  def write(sender_pid, frames, :sync), do: write_within(sender_pid, frames, :infinity)

  @doc false
  # The same, for at most `timeout` milliseconds. `{:error, :timeout}`: there was no room for the frames,
  # and nothing of them was written. `{:error, :unconfirmed}`: they may be written still.
  @spec write_within(pid(), [Frame.t()], timeout()) :: :ok | {:error, atom()}
  def write_within(sender_pid, frames, timeout) do
    {frames, cost} = prepare(sender_pid, frames)
    deadline = Deadline.in_ms(timeout)

    with {:error, :no_answer} <-
           call(sender_pid, {:write, frames, cost, deadline}, with_margin(timeout)),
         do: {:error, :unconfirmed}
  end

  defp with_margin(:infinity), do: :infinity
  defp with_margin(timeout), do: timeout + @margin

  @doc false
  # Writes frames as `write_within/3` does, and returns at once. If there is no room for them by the deadline,
  # or if the connection fails before, the caller gets `{:not_written, tag, reason}`.
  @spec submit(pid(), [Frame.t()], term(), Deadline.t()) :: :ok
  def submit(sender_pid, frames, tag, deadline) do
    {frames, cost} = prepare(sender_pid, frames)
    GenServer.cast(sender_pid, {:submit, frames, cost, {:tag, self(), tag}, deadline})
  end

  @doc false
  # The same for frames of `Barytherium.Frame.prepare/1`, without a deadline. The caller gets `{:written, tag}` when the
  # socket has them, or `{:not_written, tag, reason}`.
  @spec submit_prepared(pid(), [Frame.t()], pos_integer(), term()) :: :ok
  def submit_prepared(sender_pid, frames, cost, tag),
    do: GenServer.cast(sender_pid, {:submit, frames, cost, {:report, self(), tag}, :infinity})

  # Runs in the caller, so that a mistake raises there and not in the sender, which others use too.
  defp prepare(sender_pid, frames) when is_pid(sender_pid) and is_list(frames) do
    Enum.map_reduce(frames, 0, fn frame, sum ->
      {frame, cost} = Frame.prepare(frame)
      {frame, sum + cost}
    end)
  end

  defp prepare(sender_pid, _frames) when not is_pid(sender_pid) do
    raise ArgumentError,
          "the sender is #{inspect(sender_pid)}, and not the pid that came with " <>
            "{:barytherium, :connect, {:ok, sender_pid}}"
  end

  defp prepare(_sender_pid, frames),
    do: raise(ArgumentError, "not a list of frames: #{inspect(frames)}")

  @doc false
  # Tells the sender of the CONNECTED frame. Returns `{hb_send, hb_recv}`.
  @spec connected(pid(), Frame.t()) :: HeartBeat.pair()
  def connected(sender_pid, frame), do: GenServer.call(sender_pid, {:connected, frame}, :infinity)

  @doc false
  # Writes the queued frames and then, after CONNECTED, a DISCONNECT with these headers. Callers that
  # wait for room get an error.
  @spec finish(pid(), Frame.frame_headers(), timeout()) :: :ok | {:error, atom()}
  def finish(sender_pid, headers, timeout) do
    with {:error, :no_answer} <- call(sender_pid, {:finish, headers}, timeout),
         do: {:error, :timeout}
  end

  @doc false
  # Queues a DISCONNECT. Nothing is written after it. Before a CONNECT there is nothing to disconnect from.
  @spec disconnect(pid(), Frame.frame_headers()) :: :ok | :not_connected
  def disconnect(sender_pid, headers), do: GenServer.call(sender_pid, {:disconnect, headers})

  @doc false
  # Sends a copy of every frame that is written to `tap`, or to nobody.
  @spec set_tap(pid(), nil | pid()) :: :ok
  def set_tap(sender_pid, tap), do: GenServer.cast(sender_pid, {:tap, tap})

  @doc false
  # Sends what the native side of TLS owes the peer: an alert, for example.
  @spec flush(pid()) :: :ok
  def flush(sender_pid), do: GenServer.cast(sender_pid, :flush)

  @doc false
  # Closes the socket for writing after the write in progress. `{:error, :timeout}`: the peer does not
  # read.
  @spec shutdown(pid(), timeout()) :: :ok | {:error, :timeout | :closed}
  def shutdown(sender_pid, timeout) do
    with {:error, :no_answer} <- call(sender_pid, :shutdown, timeout), do: {:error, :timeout}
  end

  defp call(sender_pid, request, timeout) do
    GenServer.call(sender_pid, request, timeout)
  catch
    :exit, {:timeout, _call} -> {:error, :no_answer}
    :exit, _reason -> {:error, :closed}
  end
end
