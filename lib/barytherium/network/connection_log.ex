defmodule Barytherium.Network.ConnectionLog do
  @moduledoc false
  # What the log and telemetry say about a connection that this side ended.

  require Logger

  alias Barytherium.{Connection, Error, Native, ParseError, Telemetry}

  @doc "The reason of an error of the socket of `loop`. Logs what the atom leaves out."
  @spec reason(term(), map()) :: atom()
  def reason(reason, loop), do: Connection.reason(reason, peer(loop))

  @doc "Reports why the native side ended the connection of `loop`; nothing if it did not."
  @spec failure(
          nil
          | :panic
          | :truncated
          | {:tls, String.t()}
          | {:websocket, String.t()}
          | {:refused, binary(), binary()}
          | {:unfinished_error, binary()}
          | Native.failure(),
          map()
        ) :: :ok
  def failure(nil, _loop), do: :ok

  def failure(:panic, _loop),
    do: Logger.error("Barytherium ended a connection because its native code panicked")

  def failure(:truncated, loop) do
    Logger.warning(
      "#{peer(loop)} closed the TLS connection without close_notify: data may be missing (truncated)"
    )
  end

  def failure({:tls, details}, loop), do: Logger.error("TLS: #{peer(loop)}: #{details}")

  def failure({:websocket, details}, loop),
    do: Logger.error("WebSocket: #{peer(loop)}: #{details}")

  def failure({:refused, message, line}, loop) do
    Logger.error("#{peer(loop)} refused the connection: #{Error.said(message, line)}")
    Telemetry.refused(loop, message)
  end

  def failure({:unfinished_error, message}, loop),
    do:
      Logger.error("#{peer(loop)} ended the connection with an ERROR: #{Error.said(message, "")}")

  # A TLS record: an alert, or the beginning of a handshake.
  def failure({_rule, 0, <<type, 3, _rest::binary>>, _text}, loop) when type in [0x15, 0x16] do
    Logger.error(
      "#{peer(loop)} speaks TLS, and was connected to without: stomp+ssl:// in a URL, or secure: true"
    )
  end

  def failure(failure, loop) do
    error = ParseError.from_native(failure)
    message = "Barytherium ended the connection to #{peer(loop)}: " <> Exception.message(error)
    Logger.error(message, barytherium_parse_error: error)
  end

  defp peer(%{peer: {host, port}}), do: Connection.peer(host, port)
  defp peer(%{peer: text}), do: text
end
