defmodule Barytherium.Connection.Transport do
  @moduledoc false
  # The kinds of sockets that bytes go through: TCP, native TLS, and `:ssl`.

  alias Barytherium.Connection.TlsSocket

  @type socket :: :gen_tcp.socket() | :ssl.sslsocket() | TlsSocket.t()

  @doc "The module with the functions for the socket."
  @spec of(socket()) :: :gen_tcp | :ssl | TlsSocket
  def of(%TlsSocket{}), do: TlsSocket
  def of(socket) when is_tuple(socket) and elem(socket, 0) == :sslsocket, do: :ssl
  def of(_socket), do: :gen_tcp
end
