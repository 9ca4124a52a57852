defmodule Barytherium.Network.Ending do
  @moduledoc false
  # How the network process ends a connection. Its functions run in that process, and take its state.

  alias Barytherium.Connection
  alias Barytherium.Network.Sender

  # How long the alert that ends a TLS connection, or the close frame of a WebSocket, may take to be sent, in milliseconds.
  @longest_hang_up 100

  # How long the peer may take to read what was written and to close, in milliseconds.
  @longest_farewell 1_000

  # How long the receiver's call with CONNECTED may arrive after the callback process has got that
  # frame, in milliseconds.
  @longest_agreement 100

  @doc """
  Closes the socket of a connection that has ended, and stops the sender. This also ends the receiver,
  if it has not ended yet. With TLS, and in a WebSocket, the peer is told first, unless it does not read.
  """
  @spec hang_up(map()) :: true
  def hang_up(%{socket: socket, sender_pid: sender}) do
    if Connection.takes_leave?(socket) and
         Sender.shutdown(sender, @longest_hang_up) == {:error, :timeout},
       do: Connection.abandon(socket),
       else: Connection.close(socket)

    Process.unlink(sender)
    Process.exit(sender, :shutdown)
  end

  @doc "Sends what was written and a DISCONNECT, and then closes the socket."
  @spec finish(map()) :: :ok
  def finish(state) do
    unless state.is_agreed, do: await_agreement(state)

    case Sender.finish(state.sender_pid, [], state.stop_timeout) do
      :ok -> close_after_writing(state)
      {:error, _reason} -> Connection.abandon(state.socket)
    end
  end

  # The peer may not have read everything yet, and it may still send. Only one process reads at a
  # time: first the receiver, until it has found the end or the callback process has ended, and then
  # this process.
  defp close_after_writing(%{socket: socket, receiver_pid: receiver} = state) do
    Sender.shutdown(state.sender_pid, state.stop_timeout)
    if await_end(receiver), do: Connection.discard(socket, @longest_farewell)
    Connection.close(socket)
  end

  defp await_end(nil), do: true

  defp await_end(receiver) do
    receive do
      {:EXIT, ^receiver, _reason} -> true
    after
      @longest_farewell -> false
    end
  end

  # The callback process may get CONNECTED and write frames before the receiver calls this process
  # with it. Until that call the sender holds these frames back.
  defp await_agreement(state) do
    receive do
      {:"$gen_call", from, {:connected_frame, frame}} ->
        GenServer.reply(from, Sender.connected(state.sender_pid, frame))
    after
      @longest_agreement -> :ok
    end
  end
end
