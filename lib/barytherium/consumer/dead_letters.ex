defmodule Barytherium.Consumer.DeadLetters do
  @moduledoc false
  # Moves a message to another destination, where it waits for somebody who looks why it could not be handled.

  alias Barytherium.{Client, Error, Frame}

  # Headers that are of one delivery, and not of the message.
  @of_delivery ~w(subscription message-id ack destination redelivered content-length receipt transaction
                  x-delivery-count expires)

  @doc "Sends a copy, and with `acknowledge` acknowledges the message, both or neither."
  @spec move(pid(), Frame.t(), String.t(), boolean()) :: :ok | {:error, Error.t()}
  def move(client, message, destination, false),
    do: Client.publish(client, destination, body(message), headers: headers(message))

  def move(client, message, destination, true) do
    result =
      Client.transaction(client, fn transaction ->
        with :ok <- move(transaction, message, destination, false),
             do: Client.ack(transaction, message),
             else: (error -> throw(error))
      end)

    with {:ok, :ok} <- result, do: :ok
  catch
    {:error, %Error{}} = error -> error
  end

  defp headers(%Frame{headers: headers} = message) do
    inflated = if inflated?(message), do: ["content-encoding"], else: []
    kept = Enum.reject(headers, fn {name, _value} -> name in (@of_delivery ++ inflated) end)
    [{"original-destination", Frame.header(message, "destination", "")} | kept]
  end

  # The receive loop leaves the headers as they are.
  defp inflated?(%{body: {:compressed, _body, _reason}}), do: false
  defp inflated?(%{body: <<0x1F, 0x8B, _rest::binary>>}), do: false
  defp inflated?(%{body: <<0x78, _rest::binary>>}), do: false
  defp inflated?(_message), do: true

  defp body(%{body: {:compressed, body, _reason}}), do: body
  defp body(%{body: body}), do: body
end
