defmodule Barytherium.Client.Delivery do
  @moduledoc false
  # The callback process of a client's connections is a process of its own, so that the client answers
  # while messages are being handled: `Barytherium.Client.Dispatcher`, or the process of a
  # `Barytherium.Consumer`. These are its messages to the client. It passes on everything that is not a
  # MESSAGE, in the order in which it came.

  alias Barytherium.Client.Session
  alias Barytherium.Frame

  @spec connect(pid(), {:ok, pid()} | {:error, atom()}) :: :ok
  def connect(client, result), do: :gen_statem.cast(client, {:connect, result})

  @doc """
  Reports the CONNECTED frame. When this returns, the client writes its SUBSCRIBE frames, so no message
  can arrive before the delivery process has the session. `:error`: the connection has already ended.
  """
  @spec connected(pid(), pid(), Frame.t()) :: {:ok, Session.t()} | :error
  def connected(client, sender, frame), do: call(client, {:connected, sender, frame}, :error)

  @doc "The process that a subscription belongs to, and its mode, if it still exists."
  @spec subscriber(pid(), binary()) :: nil | {pid(), Session.mode()}
  def subscriber(client, id), do: call(client, {:subscriber, id}, nil)

  defp call(client, request, default) do
    :gen_statem.call(client, request)
  catch
    # The client has ended, or ends meanwhile.
    :exit, _reason -> default
  end

  @doc "Passes on RECEIPT and ERROR frames."
  @spec control(pid(), pid(), [Frame.t()]) :: :ok
  def control(_client, _sender, []), do: :ok
  def control(client, sender, frames), do: :gen_statem.cast(client, {:control, sender, frames})

  @spec disconnect(pid(), atom()) :: :ok
  def disconnect(client, reason), do: :gen_statem.cast(client, {:disconnect, reason})
end
